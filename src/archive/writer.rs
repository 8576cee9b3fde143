//! The writer: the one node that adds to the log, in an epoch that it holds. Puts
//! are conditional, and a lost reply is resolved by reading; so nothing is put
//! twice, and a writer of an older epoch is stopped by the store itself. Must not
//! decide who may write: that is the lease's.
//!
//! Why that holds: a new writer's first segment, its seal, takes the number after
//! the last segment of the epoch before, which is the number that the older writer
//! would use next. Seals are never deleted, so it finds that number taken however
//! long it slept. A seal itself that took a number whose segment was compacted and
//! deleted meanwhile is void: the horizon, read after the put, is beyond it then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::change::{Body, Change, ChangeSet, Place};
use super::error::{ArchiveError, ChainFault, Fence, PutError};
use super::head::{Head, Standing};
use super::load::read_manifest;
use super::manifest::Link;
use super::segment::{self, Segment, SegmentHead, WriterId};
use super::{Archive, keys};
use crate::object::{ObjectError, ObjectErrorKind, PutCond};
use crate::words::{DbName, Epoch, NodeId, Pos, Seq, Timestamp};

/// How often a seal starts again because the log went on meanwhile.
const ATTEMPTS: usize = 16;

/// The archive's writer in one epoch.
#[derive(Debug)]
pub struct Writer {
    pub(super) archive: Archive,
    id: WriterId,
    epoch: Epoch,
    /// Held while putting; taken before `head`.
    putting: Mutex<Putting>,
    /// Never held while waiting for the store.
    pub(super) head: RwLock<Head>,
    /// Held during upkeep; taken before `head`, never together with `putting`.
    pub(super) upkeep: Mutex<Upkeep>,
    /// Upkeep that may take long is to end now.
    pub(super) stopping: AtomicBool,
}

/// What upkeep remembers from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Since when nothing was due but the log's tail, and in which manifest.
    pub(super) quiet: Option<(u64, Timestamp)>,
    /// When what former writers left behind was last looked for.
    pub(super) swept: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Putting {
    /// A segment that may or may not be in the log.
    unsure: Option<(Bytes, Arc<Segment>)>,
    fenced: Option<Fence>,
}

/// What became of a put.
enum Outcome {
    Landed,
    Taken(Fence),
    Failed(PutError),
}

impl Writer {
    /// Becomes the writer of `epoch`: seals the log as it is now. Every put of an
    /// earlier epoch fails from then on.
    ///
    /// # Errors
    /// `Fenced` if the log is at `epoch` or beyond.
    pub fn seal(archive: &Archive, epoch: Epoch, node: NodeId) -> Result<Writer, PutError> {
        Writer::seal_after(archive, archive.head()?, epoch, node)
    }

    /// As `seal`, with a head that was read before: two requests if nobody has put
    /// anything since.
    ///
    /// # Errors
    /// As `seal`.
    pub fn seal_after(
        archive: &Archive,
        mut head: Head,
        epoch: Epoch,
        node: NodeId,
    ) -> Result<Writer, PutError> {
        let id = WriterId { node, nonce: (archive.options.random)() };
        for _ in 0..ATTEMPTS {
            if head.epoch() >= epoch {
                let Link { seq, epoch, writer, .. } = head.last;
                return Err(PutError::Fenced { by: Fence { seq, epoch, node: writer.node } });
            }
            let writer = Writer {
                archive: archive.clone(),
                id,
                epoch,
                putting: Mutex::default(),
                head: RwLock::new(head),
                upkeep: Mutex::default(),
                stopping: AtomicBool::new(false),
            };
            let (bytes, segment) = writer.encode(&[], true);
            match writer.put_segment(&bytes, &segment) {
                Outcome::Landed => {
                    writer.landed(segment.clone(), bytes)?;
                    let horizon = read_manifest(archive.store.as_ref())?.map(|(found, _)| found.horizon.seq);
                    if horizon.is_some_and(|horizon| horizon < segment.head.seq) {
                        return Ok(writer);
                    }
                }
                Outcome::Taken(_) => {}
                Outcome::Failed(error) => return Err(error),
            }
            head = archive.head()?;
        }
        Err(PutError::Refused(ArchiveError::Conflict))
    }

    /// The archive.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The epoch in which it writes.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Who it is.
    pub fn id(&self) -> WriterId {
        self.id
    }

    /// The head: what is surely in the archive.
    pub fn head(&self) -> Head {
        self.head.read().clone()
    }

    /// Looks at the head without copying it. `look` must be short.
    pub fn with_head<R>(&self, look: impl FnOnce(&Head) -> R) -> R {
        look(&self.head.read())
    }

    /// Puts change sets, in commit order, as one segment, and returns the last
    /// segment's number. After a failure the same ones are put again, first of all: those
    /// that are in the log already are left out, as long as upkeep has not taken them out
    /// of the log since.
    ///
    /// # Errors
    /// After `Unreachable` put again; after `Fenced` never again.
    pub fn put(&self, sets: &[ChangeSet]) -> Result<Seq, PutError> {
        let mut putting = self.putting.lock();
        if let Some(by) = putting.fenced {
            return Err(PutError::Fenced { by });
        }
        let mut landed = Vec::new();
        if let Some((bytes, segment)) = putting.unsure.clone() {
            self.settle(&mut putting, bytes, segment.clone())?;
            landed.extend(segment.entries.iter().map(|entry| (entry.db.clone(), entry.change.post)));
        }
        let fresh = self.fresh(&landed, sets)?;
        if fresh.is_empty() {
            return Ok(self.head.read().seq());
        }
        let mut placed = Vec::with_capacity(fresh.len());
        for set in fresh {
            placed.push(self.place(set)?);
        }
        let (bytes, segment) = self.encode(&placed, false);
        let seq = segment.head.seq;
        self.head.read().check(&segment).map_err(ArchiveError::from)?;
        putting.unsure = Some((bytes.clone(), segment.clone()));
        self.settle(&mut putting, bytes, segment)?;
        Ok(seq)
    }

    /// Who fenced this writer off, if it is known.
    pub fn fenced(&self) -> Option<Fence> {
        self.putting.lock().fenced
    }

    /// Gets a segment into the log, or finds out why not.
    fn settle(&self, putting: &mut Putting, bytes: Bytes, segment: Arc<Segment>) -> Result<(), PutError> {
        match self.put_segment(&bytes, &segment) {
            Outcome::Landed => {
                putting.unsure = None;
                self.landed(segment, bytes).map_err(PutError::from)
            }
            Outcome::Taken(by) => {
                putting.unsure = None;
                putting.fenced = Some(by);
                Err(PutError::Fenced { by })
            }
            Outcome::Failed(error) => Err(error),
        }
    }

    /// One conditional put; its failure is looked into by reading the key.
    fn put_segment(&self, bytes: &Bytes, segment: &Segment) -> Outcome {
        let key = keys::segment(segment.head.seq);
        let store = &self.archive.store;
        match store.put(&key, bytes.clone(), PutCond::IfAbsent) {
            Ok(_) => Outcome::Landed,
            Err(error) if matches!(error.kind, ObjectErrorKind::Precondition | ObjectErrorKind::Unknown) => {
                match store.get(&key) {
                    Ok(Some(object)) => self.judge(segment, &key, &object.body),
                    Ok(None) => Outcome::Failed(PutError::Unreachable(ObjectError {
                        kind: ObjectErrorKind::Unknown,
                        ..error
                    })),
                    Err(error) => Outcome::Failed(error.into()),
                }
            }
            Err(error) => Outcome::Failed(error.into()),
        }
    }

    /// Whose the segment is that lies at a key.
    fn judge(&self, ours: &Segment, key: &str, bytes: &[u8]) -> Outcome {
        let refused = |error: ArchiveError| Outcome::Failed(PutError::Refused(error));
        match segment::decode(bytes) {
            Ok(found) if found.head == ours.head && found.sum == ours.sum => Outcome::Landed,
            Ok(found) if found.head.cluster != self.archive.cluster => {
                let (expected, found) = (self.archive.cluster, found.head.cluster);
                refused(ChainFault::OtherCluster { seq: ours.head.seq, expected, found }.into())
            }
            Ok(found) => {
                let SegmentHead { seq, epoch, writer, .. } = found.head;
                Outcome::Taken(Fence { seq, epoch, node: writer.node })
            }
            Err(fault) => refused(ArchiveError::damaged(key, fault)),
        }
    }

    fn landed(&self, segment: Arc<Segment>, bytes: Bytes) -> Result<(), ArchiveError> {
        Ok(self.head.write().extend(segment, Some(bytes))?)
    }

    /// Those of `sets` that are not in the log yet.
    fn fresh(&self, landed: &[(DbName, Pos)], sets: &[ChangeSet]) -> Result<Vec<ChangeSet>, PutError> {
        let head = self.head.read();
        let mut standings: BTreeMap<DbName, Standing> = BTreeMap::new();
        let mut fresh = Vec::new();
        for set in sets {
            let ChangeSet { db, change, .. } = set;
            let before = standings.get(db).or_else(|| head.standing(db)).copied();
            let stands = before.map_or(Pos::ZERO, |standing| standing.pos);
            let is_known = || {
                head.tail_of(db).any(|(_, entry)| entry.change.post == change.post)
                    || landed.contains(&(db.clone(), change.post))
            };
            if change.post == stands || (change.post.txid <= stands.txid && is_known()) {
                continue;
            }
            if change.pre != stands {
                return Err(PutError::NotNext { db: db.clone(), stands, wants: change.pre });
            }
            set.check()?;
            // Clocks differ and jump; within a database time does not go back, so
            // that a moment names one state.
            let timestamp = before.map_or(change.timestamp, |before| before.timestamp.max(change.timestamp));
            let Change { post: pos, page_size, commit, .. } = *change;
            standings.insert(db.clone(), Standing { pos, page_size, commit, timestamp });
            fresh.push(ChangeSet { change: Change { timestamp, ..*change }, ..set.clone() });
        }
        Ok(fresh)
    }

    /// Puts a change set that is a file as an object of its own.
    fn place(&self, set: ChangeSet) -> Result<(ChangeSet, Place), PutError> {
        let place = match &set.body {
            Body::Bytes(bytes) => Place::Here { offset: 0, len: bytes.len() as u64 },
            Body::File(path) => {
                let attempt = format!("reading {}", path.display());
                let size = std::fs::metadata(path).map_err(ArchiveError::local(attempt))?.len();
                let key = keys::big(self.epoch, self.id.nonce, &set.db, set.change.max());
                self.archive.store.put_file(&key, path)?;
                Place::Object { key, size }
            }
        };
        Ok((set, place))
    }

    fn encode(&self, sets: &[(ChangeSet, Place)], seal: bool) -> (Bytes, Arc<Segment>) {
        let last = self.head.read().last;
        let head = SegmentHead {
            cluster: self.archive.cluster,
            epoch: self.epoch,
            writer: self.id,
            seq: last.seq.next(),
            prev: last.sum,
            timestamp: self.now(),
            seal,
        };
        let (bytes, segment) = segment::encode(head, sets);
        (bytes, Arc::new(segment))
    }

    fn now(&self) -> Timestamp {
        self.archive.options.clock.now()
    }
}
