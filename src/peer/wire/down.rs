//! What a primary says.

use std::time::Duration;

use bytes::Bytes;

use crate::words::{Checksum, ClusterId, DbName, Epoch, NodeId, PageSize, Pos, Timestamp};

use super::MAX_DATA;
use super::decoder::{Fault, Message, frame, put_version, version};
use super::fields::{Input, put_pos, put_positions, put_text};

const WELCOME: u8 = 64;
const CHANGE: u8 = 65;
const DATA: u8 = 66;
const DONE: u8 = 67;
const BEAT: u8 = 68;
const ARCHIVED: u8 = 69;
const SETTLE: u8 = 70;
const END: u8 = 71;

/// Who the primary is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Its name for people.
    pub hostname: String,
    /// In which epoch it is the primary.
    pub epoch: Epoch,
}

/// What a change set does; its bytes (LTX) follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeHead {
    /// The database.
    pub db: DbName,
    /// Where it must stand before.
    pub pre: Pos,
    /// Where it stands after.
    pub post: Pos,
    /// The page size after.
    pub page_size: PageSize,
    /// The size in pages after; 0: dropped.
    pub commit: u32,
    /// How many pages the change set carries.
    pub pages: u32,
    /// When it was committed, by the primary's clock.
    pub timestamp: Timestamp,
}

impl ChangeHead {
    /// Whether it is no contradiction in itself.
    pub fn is_sound(&self) -> bool {
        let dropped = self.commit == 0 && self.post.checksum != Checksum::EMPTY;
        self.pre.txid < self.post.txid && self.pages <= self.commit && !dropped
    }
}

/// The primary is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Its monotonic clock, in milliseconds: everything that was committed before was
    /// said before. Comparable within one stream only.
    pub at: Duration,
    /// Its wall time.
    pub wall: Timestamp,
}

/// Why a primary ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It stops.
    Stopping,
    /// It is not the primary any more.
    NotPrimary,
    /// It gives the lease to the replica at the other end.
    Handoff,
    /// The same node has begun another stream.
    Replaced,
}

/// A frame from a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// The first.
    Welcome(Welcome),
    /// A change set begins.
    Change(ChangeHead),
    /// More of its bytes; at least one.
    Data(Bytes),
    /// It was whole: so many bytes.
    Done(u64),
    /// Nothing else was to be said for a while.
    Beat(Beat),
    /// Where databases stand in the archive.
    Archived(Vec<(DbName, Pos)>),
    /// From where the replica stands there are no change sets: the archive knows what
    /// lies between. Nothing more is said of this database until the replica says
    /// where it stands.
    Settle {
        /// The database.
        db: DbName,
        /// Where it stands on the primary; zero: the primary has nothing of it.
        pos: Pos,
    },
    /// The last.
    End(Ending),
}

impl Message for Down {
    fn read(kind: u8, payload: &[u8]) -> Result<Option<Down>, Fault> {
        let mut input = Input(payload);
        let frame = match kind {
            WELCOME => {
                version(&mut input)?;
                welcome(&mut input).map(Down::Welcome)
            }
            CHANGE => change(&mut input).filter(ChangeHead::is_sound).map(Down::Change),
            DATA => data(&mut input, payload.len()),
            DONE => input.u64().map(Down::Done),
            BEAT => beat(&mut input).map(Down::Beat),
            ARCHIVED => input.positions().map(Down::Archived),
            SETTLE => settle(&mut input),
            END => input.u8().and_then(ending).map(Down::End),
            other => return Err(Fault::Kind(other)),
        };
        Ok(frame.filter(|_| input.0.is_empty()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Down::Welcome(welcome) => frame(out, WELCOME, |out| {
                put_version(out);
                out.extend_from_slice(&welcome.cluster.get().to_be_bytes());
                out.extend_from_slice(&welcome.node.get().to_be_bytes());
                out.extend_from_slice(&welcome.epoch.get().to_be_bytes());
                put_text(out, &welcome.hostname);
            }),
            Down::Change(head) => frame(out, CHANGE, |out| put_change(out, head)),
            Down::Data(data) => Down::write_data(data, out),
            Down::Done(len) => frame(out, DONE, |out| out.extend_from_slice(&len.to_be_bytes())),
            Down::Beat(beat) => frame(out, BEAT, |out| {
                out.extend_from_slice(&millis(beat.at).to_be_bytes());
                out.extend_from_slice(&beat.wall.millis().to_be_bytes());
            }),
            Down::Archived(positions) => frame(out, ARCHIVED, |out| put_positions(out, positions)),
            Down::Settle { db, pos } => frame(out, SETTLE, |out| {
                put_text(out, db.as_str());
                put_pos(out, *pos);
            }),
            Down::End(ending) => frame(out, END, |out| out.push(code(*ending))),
        }
    }
}

impl Down {
    /// Appends `data` to `out`, as many frames as it takes.
    pub fn write_data(data: &[u8], out: &mut Vec<u8>) {
        for piece in data.chunks(MAX_DATA) {
            frame(out, DATA, |out| out.extend_from_slice(piece));
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn put_change(out: &mut Vec<u8>, head: &ChangeHead) {
    put_text(out, head.db.as_str());
    put_pos(out, head.pre);
    put_pos(out, head.post);
    for word in [head.page_size.get(), head.commit, head.pages] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&head.timestamp.millis().to_be_bytes());
}

fn data(input: &mut Input<'_>, len: usize) -> Option<Down> {
    let data = input.take(len).filter(|data| !data.is_empty())?;
    Some(Down::Data(Bytes::copy_from_slice(data)))
}

fn welcome(input: &mut Input<'_>) -> Option<Welcome> {
    let (cluster, node) = (input.cluster()?, input.node()?);
    let epoch = Epoch::new(input.u64()?);
    Some(Welcome { cluster, node, epoch, hostname: input.text()?.to_owned() })
}

fn change(input: &mut Input<'_>) -> Option<ChangeHead> {
    Some(ChangeHead {
        db: input.db()?,
        pre: input.pos()?,
        post: input.pos()?,
        page_size: input.page_size()?,
        commit: input.u32()?,
        pages: input.u32()?,
        timestamp: input.time()?,
    })
}

fn beat(input: &mut Input<'_>) -> Option<Beat> {
    Some(Beat { at: Duration::from_millis(input.u64()?), wall: input.time()? })
}

fn settle(input: &mut Input<'_>) -> Option<Down> {
    Some(Down::Settle { db: input.db()?, pos: input.pos()? })
}

const ENDINGS: [(Ending, u8); 4] =
    [(Ending::Stopping, 1), (Ending::NotPrimary, 2), (Ending::Handoff, 3), (Ending::Replaced, 4)];

fn code(ending: Ending) -> u8 {
    ENDINGS.iter().find(|(known, _)| *known == ending).map_or(0, |(_, code)| *code)
}

fn ending(code: u8) -> Option<Ending> {
    ENDINGS.iter().find(|(_, known)| *known == code).map(|(ending, _)| *ending)
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Ending::Stopping => "it is stopping",
            Ending::NotPrimary => "it is not the primary any more",
            Ending::Handoff => "it hands the lease over",
            Ending::Replaced => "this node has begun another stream",
        })
    }
}
