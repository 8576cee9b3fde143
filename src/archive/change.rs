//! The facts of a change set, and how lists of them are written into the heads of
//! segments and packs. Must not look into the pages.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bytes::{Input, Output};
use super::error::ArchiveError;
use crate::ltx::{Form, HEADER_LEN, Header, Index, Located, Trailer};
use crate::words::{DbName, PageSize, Pos, Timestamp, Txid};

/// What a change set does, without its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where the database must stand before it.
    pub pre: Pos,
    /// Where it stands after it.
    pub post: Pos,
    /// The page size after it.
    pub page_size: PageSize,
    /// The size of the database after it, in pages; 0: dropped.
    pub commit: u32,
    /// How many pages it carries.
    pub pages: u32,
    /// When it was committed; within a database never earlier than the one before.
    #[serde(rename = "time")]
    pub timestamp: Timestamp,
}

impl Change {
    /// The first transaction in it.
    pub fn min(&self) -> Txid {
        self.pre.txid.next()
    }

    /// The last transaction in it.
    pub fn max(&self) -> Txid {
        self.post.txid
    }

    /// Whether it carries every page of the database, so that nothing before it
    /// matters.
    pub fn is_full(&self) -> bool {
        let has_lock_page = self.commit >= self.page_size.lock_page().get();
        self.pages == self.commit - u32::from(has_lock_page)
    }

    /// Whether it says that the database was dropped.
    pub fn is_drop(&self) -> bool {
        self.commit == 0
    }

    /// The facts of the change set with this header, index and trailer.
    pub fn of(header: &Header, index: &Index, trailer: &Trailer) -> Option<Change> {
        let post = match header.form {
            Form::Tracked => trailer.post,
            Form::NoChecksum { post } => Some(post),
            Form::Untracked => None,
        };
        Some(Change {
            pre: Pos { txid: Txid::new(header.min.get().checked_sub(1)?), checksum: header.pre },
            post: Pos { txid: header.max, checksum: post? },
            page_size: header.page_size,
            commit: header.commit,
            pages: u32::try_from(index.len()).ok()?,
            timestamp: header.timestamp,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.pos(self.pre);
        out.pos(self.post);
        out.u32(self.page_size.get());
        out.u32(self.commit);
        out.u32(self.pages);
        out.u64(self.timestamp.millis().cast_unsigned());
    }

    pub(super) fn read(input: &mut Input<'_>) -> Option<Change> {
        let (pre, post) = (input.pos()?, input.pos()?);
        let page_size = PageSize::new(input.u32()?).ok()?;
        let (commit, pages) = (input.u32()?, input.u32()?);
        let timestamp = Timestamp::from_millis(input.u64()?.cast_signed());
        let sound = pre.txid < post.txid && pages <= commit;
        sound.then_some(Change { pre, post, page_size, commit, pages, timestamp })
    }
}

/// The bytes of a change set.
#[derive(Clone, Debug)]
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// In a file: for change sets that are large (an imported database).
    File(PathBuf),
}

/// A change set to be put into the archive.
#[derive(Clone, Debug)]
pub struct ChangeSet {
    /// Whose it is.
    pub db: DbName,
    /// What it does.
    pub change: Change,
    /// Its LTX.
    pub body: Body,
}

impl ChangeSet {
    /// The change set whose LTX is `ltx`. Reads header and index only.
    ///
    /// # Errors
    /// `BadChange` if it is no sound LTX with checksums.
    pub fn new(db: DbName, ltx: Bytes) -> Result<ChangeSet, ArchiveError> {
        let change = facts(&db, &ltx)?;
        Ok(ChangeSet { db, change, body: Body::Bytes(ltx) })
    }

    /// Whether its facts are those of its LTX, as far as this is in memory.
    pub(super) fn check(&self) -> Result<(), ArchiveError> {
        let Body::Bytes(ltx) = &self.body else { return Ok(()) };
        let found = facts(&self.db, ltx)?;
        if (Change { timestamp: self.change.timestamp, ..found }) == self.change {
            return Ok(());
        }
        let why = format!("it says {found:?}, not {:?}", self.change);
        Err(ArchiveError::BadChange { db: self.db.clone(), why })
    }
}

/// Header and page index of a whole LTX in memory.
pub(super) fn parse(ltx: &[u8]) -> Result<(Header, Index, Trailer), String> {
    let header = Header::parse(ltx.get(..HEADER_LEN).unwrap_or(ltx)).map_err(|e| e.to_string())?;
    match Index::from_tail(&header, ltx, ltx.len() as u64).map_err(|e| e.to_string())? {
        Located::Index(index, trailer) => Ok((header, index, trailer)),
        Located::NeedTail(_) => Err("it is shorter than its page index".to_owned()),
    }
}

fn facts(db: &DbName, ltx: &[u8]) -> Result<Change, ArchiveError> {
    let bad = |why: String| ArchiveError::BadChange { db: db.clone(), why };
    let (header, index, trailer) = parse(ltx).map_err(bad)?;
    Change::of(&header, &index, &trailer).ok_or_else(|| {
        bad("it has no checksums of the database; only litefs's own change sets have".to_owned())
    })
}

/// Where the bytes of an entry are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the same object.
    Here {
        /// From this byte of the object on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// They are an object of their own.
    Object {
        /// Its key.
        key: String,
        /// Its size in bytes.
        size: u64,
    },
}

/// One change set in a segment or pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub db: DbName,
    /// What it does.
    pub change: Change,
    /// Where its bytes are.
    pub place: Place,
}

impl Entry {
    /// The length of its LTX in bytes.
    pub fn size(&self) -> u64 {
        match &self.place {
            Place::Here { len, .. } => *len,
            Place::Object { size, .. } => *size,
        }
    }
}

const HERE: u8 = 0;
const OBJECT: u8 = 1;
/// No entry is shorter than this: a bound for what a count may claim.
const MIN_ENTRY: usize = 2 + 52 + 1 + 8;

/// Writes entries; offsets are relative to the body.
pub(super) fn write_entries<'a>(
    out: &mut Vec<u8>,
    entries: impl Iterator<Item = (&'a DbName, &'a Change, &'a Place)>,
) {
    for (db, change, place) in entries {
        out.text(db.as_str());
        change.write(out);
        match place {
            Place::Here { len, .. } => {
                out.push(HERE);
                out.u64(*len);
            }
            Place::Object { key, size } => {
                out.push(OBJECT);
                out.u64(*size);
                out.text(key);
            }
        }
    }
}

/// Reads `count` entries that fill `bytes` exactly; their bodies follow each other
/// from byte `body_at` of the object on and must fill `body_len` bytes.
pub(super) fn read_entries(bytes: &[u8], count: u32, body_at: u64, body_len: u64) -> Option<Vec<Entry>> {
    let count = usize::try_from(count).ok()?;
    if count > bytes.len() / MIN_ENTRY {
        return None;
    }
    let mut entries = Vec::with_capacity(count);
    let (mut input, mut offset) = (Input(bytes), body_at);
    let end = body_at.checked_add(body_len)?;
    for _ in 0..count {
        let db = DbName::new(input.text()?).ok()?;
        let change = Change::read(&mut input)?;
        let place = match input.u8()? {
            HERE => {
                let len = input.u64()?;
                let place = Place::Here { offset, len };
                offset = offset.checked_add(len)?;
                place
            }
            OBJECT => Place::Object { size: input.u64()?, key: input.text()?.to_owned() },
            _ => return None,
        };
        entries.push(Entry { db, change, place });
    }
    (input.0.is_empty() && offset == end).then_some(entries)
}
