//! The bridge between blocking readers and asynchronous bodies: a few blocks in
//! flight, so that a database of any size crosses in constant memory, and a peer
//! that stands still is noticed. Must not know what the bytes mean.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const BLOCK: usize = 256 << 10;
const IN_FLIGHT: usize = 4;

/// When a transfer is given up.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How long the other side may neither send nor take a byte.
    pub stall: Duration,
    /// The server ends now, whatever is under way.
    pub ending: CancellationToken,
}

/// A body that gives exactly `size` bytes of `reader`; it breaks off (the client
/// sees a short body) when the reader fails or ends early.
pub fn body_of(mut reader: Box<dyn Read + Send>, size: u64, patience: Patience) -> Body {
    let (blocks, body) = mpsc::channel::<io::Result<Bytes>>(IN_FLIGHT);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut left = size;
        while left > 0 {
            let block = read_block(&mut reader, left);
            let end = block.is_err();
            left -= block.as_ref().map_or(0, |block| block.len() as u64);
            let sent = runtime.block_on(async {
                tokio::select! {
                    () = patience.ending.cancelled() => false,
                    sent = timeout(patience.stall, blocks.send(block)) => matches!(sent, Ok(Ok(()))),
                }
            });
            if end || !sent {
                return;
            }
        }
    });
    Body::from_stream(futures_util::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|block| (block, body))
    }))
}

fn read_block(reader: &mut dyn Read, left: u64) -> io::Result<Bytes> {
    let want = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
    let mut block = BytesMut::zeroed(want);
    let mut have = 0;
    while have < want {
        match reader.read(&mut block[have..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(block.freeze())
}

/// A body to read from a thread for blocking work: gives an error when the body
/// breaks off or nothing comes for too long.
pub struct BodyReader {
    runtime: tokio::runtime::Handle,
    body: BodyDataStream,
    block: Bytes,
    patience: Patience,
}

impl BodyReader {
    /// Must be made on the runtime that serves the body.
    pub fn new(body: Body, patience: Patience) -> BodyReader {
        let runtime = tokio::runtime::Handle::current();
        BodyReader { runtime, body: body.into_data_stream(), block: Bytes::new(), patience }
    }

    /// Reads and forgets up to about `most` bytes.
    pub fn discard(&mut self, most: u64) {
        let mut gone = 0;
        while gone < most
            && let Ok(Some(block)) = self.next_block()
        {
            gone += block.len() as u64;
        }
    }

    fn next_block(&mut self) -> io::Result<Option<Bytes>> {
        let (body, patience) = (&mut self.body, &self.patience);
        self.runtime.block_on(async {
            tokio::select! {
                () = patience.ending.cancelled() => {
                    Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the node is stopping"))
                }
                next = timeout(patience.stall, body.next()) => match next {
                    Err(_) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("the client sent nothing for {} seconds", patience.stall.as_secs()),
                    )),
                    Ok(None) => Ok(None),
                    Ok(Some(block)) => block.map(Some).map_err(io::Error::other),
                },
            }
        })
    }
}

impl Read for BodyReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() {
            match self.next_block()? {
                None => return Ok(0),
                Some(block) => self.block = block,
            }
        }
        let count = to.len().min(self.block.len());
        to[..count].copy_from_slice(&self.block.split_to(count));
        Ok(count)
    }
}
