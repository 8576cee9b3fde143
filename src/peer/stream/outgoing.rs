//! The primary's half of a stream, from a thread for blocking work: items become
//! frames, frames become blocks, and at most a few blocks wait for the peer.

use std::io::{self, BufWriter, Write};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::feed::{Feed, Item, OutgoingChange};
use crate::peer::bridge::Patience;
use crate::peer::wire::{Down, Ending, MAX_DATA, MAX_POSITIONS, Message};
use crate::words::{DbName, Pos};

/// A block is sent when it has so many bytes, or when an item ends.
const BLOCK: usize = 256 << 10;

/// Frames on their way into a reply's body.
pub(super) struct Outgoing {
    pub blocks: mpsc::Sender<io::Result<Bytes>>,
    pub runtime: tokio::runtime::Handle,
    pub patience: Patience,
    /// The peer is gone.
    pub gone: CancellationToken,
    pub bytes: Vec<u8>,
}

impl Outgoing {
    /// Sends what the feed gives until one of the three ends.
    pub fn run(mut self, feed: &dyn Feed, stopping: &CancellationToken, beat: std::time::Duration) {
        Down::Welcome(feed.welcome()).write(&mut self.bytes);
        let ended = self.flush().and_then(|()| self.pump(feed, stopping, beat));
        if let Err(error) = ended {
            tracing::debug!(%error, "a stream to a replica broke off");
            // The body must not look whole. Nobody may be there to see it.
            let _ = self.blocks.try_send(Err(error));
        }
    }

    fn pump(
        &mut self,
        feed: &dyn Feed,
        stopping: &CancellationToken,
        beat: std::time::Duration,
    ) -> io::Result<()> {
        loop {
            if stopping.is_cancelled() {
                return self.say(&Down::End(Ending::Stopping));
            }
            if self.gone.is_cancelled() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match feed.next(beat).map_err(io::Error::other)? {
                Item::Change(change) => self.change(change)?,
                Item::Beat(beat) => self.say(&Down::Beat(beat))?,
                Item::Archived(positions) => self.archived(&positions)?,
                // Not a beat, which would say that everything is said.
                Item::Busy => self.say(&Down::Archived(Vec::new()))?,
                Item::Settle { db, pos } => self.say(&Down::Settle { db, pos })?,
                Item::End(ending) => return self.say(&Down::End(ending)),
            }
        }
    }

    fn say(&mut self, frame: &Down) -> io::Result<()> {
        frame.write(&mut self.bytes);
        self.flush()
    }

    fn archived(&mut self, positions: &[(DbName, Pos)]) -> io::Result<()> {
        positions.chunks(MAX_POSITIONS).try_for_each(|some| self.say(&Down::Archived(some.to_vec())))
    }

    fn change(&mut self, change: OutgoingChange) -> io::Result<()> {
        Down::Change(change.head).write(&mut self.bytes);
        let mut data = BufWriter::with_capacity(MAX_DATA, Data { out: self, len: 0 });
        (change.write)(&mut data)?;
        data.flush()?;
        let len = data.get_ref().len;
        drop(data);
        self.say(&Down::Done(len))
    }

    /// Gives the block away; waits while the peer takes nothing.
    fn flush(&mut self) -> io::Result<()> {
        let block = Bytes::from(std::mem::take(&mut self.bytes));
        self.runtime.block_on(async {
            let sent = tokio::select! {
                () = self.gone.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
                () = self.patience.ending.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
                sent = timeout(self.patience.stall, self.blocks.send(Ok(block))) => sent,
            };
            match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(io::ErrorKind::ConnectionAborted.into()),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

/// The bytes of a change set.
struct Data<'a> {
    out: &'a mut Outgoing,
    len: u64,
}

impl Write for Data<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Down::write_data(bytes, &mut self.out.bytes);
        self.len += bytes.len() as u64;
        if self.out.bytes.len() >= BLOCK {
            self.out.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
