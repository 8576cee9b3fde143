//! The head: what the manifest and the segments after its horizon say together.
//! Checks that the log is one chain. Must not do I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::change::{Change, Entry};
use super::error::ChainFault;
use super::manifest::{Link, Manifest, ObjectRef};
use super::segment::Segment;
use crate::object::Etag;
use crate::words::{DbName, Epoch, PageSize, Pos, Seq, Timestamp};

/// Where a database stands at the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its position.
    pub pos: Pos,
    /// Its page size.
    pub page_size: PageSize,
    /// Its size in pages; 0: it is dropped.
    pub commit: u32,
    /// When its last transaction was committed.
    pub timestamp: Timestamp,
}

impl Standing {
    /// Whether the database is dropped.
    pub fn is_dropped(&self) -> bool {
        self.commit == 0
    }
}

/// A segment after the horizon.
#[derive(Clone, Debug)]
pub struct TailSegment {
    /// What is in it.
    pub segment: Arc<Segment>,
    /// The whole object, if it was small enough to keep.
    pub bytes: Option<Bytes>,
}

/// So many bytes of segments are kept with a head.
const KEEP: u64 = 32 << 20;

/// The archive's head.
#[derive(Clone, Debug)]
pub struct Head {
    pub(super) manifest: Arc<Manifest>,
    pub(super) etag: Etag,
    pub(super) tail: Vec<TailSegment>,
    pub(super) last: Link,
    pub(super) databases: BTreeMap<DbName, Standing>,
    /// When the manifest was read, by the clock's `elapsed`.
    pub(super) as_of: Duration,
    kept: u64,
}

impl Head {
    /// What the manifest says, without any segment.
    pub fn new(manifest: Arc<Manifest>, etag: Etag) -> Head {
        let standing = |database: &super::manifest::Database| Standing {
            pos: database.pos,
            page_size: database.page_size,
            commit: database.commit,
            timestamp: database.timestamp,
        };
        Head {
            last: manifest.horizon,
            databases: manifest.databases.iter().map(|(name, db)| (name.clone(), standing(db))).collect(),
            manifest,
            etag,
            tail: Vec::new(),
            as_of: Duration::ZERO,
            kept: 0,
        }
    }

    /// Every database, also the dropped ones.
    pub fn databases(&self) -> &BTreeMap<DbName, Standing> {
        &self.databases
    }

    /// Where a database stands; `None` if there never was one.
    pub fn standing(&self, db: &DbName) -> Option<&Standing> {
        self.databases.get(db)
    }

    /// The position of a database, the zero position if there never was one.
    pub fn pos(&self, db: &DbName) -> Pos {
        self.databases.get(db).map_or(Pos::ZERO, |standing| standing.pos)
    }

    /// The last segment's number.
    pub fn seq(&self) -> Seq {
        self.last.seq
    }

    /// The epoch of the last segment; 0 if there is none.
    pub fn epoch(&self) -> Epoch {
        self.last.epoch
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The version of the manifest.
    pub fn etag(&self) -> &Etag {
        &self.etag
    }

    /// The segments after the manifest's horizon.
    pub fn tail(&self) -> &[TailSegment] {
        &self.tail
    }

    /// The change sets of one database in the tail, oldest first.
    pub fn tail_of<'a>(
        &'a self,
        db: &'a DbName,
    ) -> impl DoubleEndedIterator<Item = (&'a TailSegment, &'a Entry)> {
        self.tail.iter().flat_map(move |tail| {
            tail.segment.entries.iter().filter(move |entry| &entry.db == db).map(move |entry| (tail, entry))
        })
    }

    /// The objects of one database.
    pub fn objects(&self, db: &DbName) -> &[ObjectRef] {
        self.manifest.databases.get(db).map_or(&[], |database| &database.objects)
    }

    /// Adds the next segment.
    ///
    /// # Errors
    /// What would break the chain; the head is as before then.
    pub fn extend(&mut self, segment: Arc<Segment>, bytes: Option<Bytes>) -> Result<(), ChainFault> {
        let standings = self.check(&segment)?;
        self.databases.extend(standings);
        let head = segment.head;
        self.last = Link { seq: head.seq, sum: segment.sum, epoch: head.epoch, writer: head.writer };
        let bytes = bytes.filter(|bytes| self.kept + bytes.len() as u64 <= KEEP);
        self.kept += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.tail.push(TailSegment { segment, bytes });
        Ok(())
    }

    /// Whether this may be the next segment; what changes by it.
    pub(super) fn check(&self, segment: &Segment) -> Result<BTreeMap<DbName, Standing>, ChainFault> {
        self.check_link(segment)?;
        let mut standings: BTreeMap<DbName, Standing> = BTreeMap::new();
        for entry in &segment.entries {
            let before = standings.get(&entry.db).or_else(|| self.databases.get(&entry.db)).copied();
            standings.insert(entry.db.clone(), follow(segment.head.seq, entry, before)?);
        }
        Ok(standings)
    }

    fn check_link(&self, segment: &Segment) -> Result<(), ChainFault> {
        let (head, last) = (&segment.head, &self.last);
        let seq = last.seq.next();
        if head.cluster != self.manifest.cluster {
            return Err(ChainFault::OtherCluster {
                seq,
                expected: self.manifest.cluster,
                found: head.cluster,
            });
        }
        if head.seq != seq {
            return Err(ChainFault::Number(seq, head.seq));
        }
        if head.epoch < last.epoch || (head.seal && head.epoch == last.epoch) {
            return Err(ChainFault::OldEpoch { seq, epoch: head.epoch, after: last.epoch });
        }
        if head.prev != last.sum {
            return Err(ChainFault::NotAfter(seq));
        }
        if !head.seal && (head.epoch != last.epoch || head.writer != last.writer) {
            return Err(ChainFault::OtherWriter {
                seq,
                epoch: head.epoch,
                expected: last.writer.node,
                found: head.writer.node,
            });
        }
        Ok(())
    }

    /// The head with a newer manifest, whose horizon is within the tail: segments up
    /// to it go. `None` if this head does not reach that far.
    pub(super) fn rebase(&self, manifest: Arc<Manifest>, etag: Etag) -> Option<Head> {
        if manifest.horizon.seq > self.last.seq {
            return None;
        }
        let mut head = Head::new(manifest, etag);
        for tail in &self.tail {
            if tail.segment.head.seq > head.last.seq {
                head.extend(tail.segment.clone(), tail.bytes.clone()).ok()?;
            }
        }
        Some(head)
    }
}

/// Where a database stands after `entry`, if it follows.
fn follow(seq: Seq, entry: &Entry, before: Option<Standing>) -> Result<Standing, ChainFault> {
    let Change { pre, post, page_size, commit, timestamp, .. } = entry.change;
    let stands = before.map_or(Pos::ZERO, |standing| standing.pos);
    let db = || entry.db.clone();
    if pre != stands {
        return Err(ChainFault::Position { seq, db: db(), stands, wants: pre });
    }
    let same_size = before.is_none_or(|standing| standing.page_size == page_size || standing.is_dropped());
    if !same_size && !entry.change.is_full() {
        return Err(ChainFault::PageSize { seq, db: db() });
    }
    Ok(Standing { pos: post, page_size, commit, timestamp })
}
