//! Performing what upkeep planned: make objects, then say so in the manifest, and
//! only then delete. A crash in between leaves objects that nobody names; the next
//! upkeep takes them over. Must not decide what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::change::{Change, Place};
use super::error::{ArchiveError, Fence, PutError};
use super::head::{Head, Standing};
use super::load::{encode, in_parallel, read_manifest};
use super::manifest::{Database, Doomed, Kind, Link, Manifest, ObjectRef};
use super::merge::Merged;
use super::plan::{Part, Plan, Relation, Source, Step, Target};
use super::read::{Data, Ltx};
use super::sink::{Progress, Watch};
use super::spool::Uploaded;
use super::upkeep::{Act, Occasion, Stretch, key_of, plan_upkeep, stretches};
use super::writer::Writer;
use super::{Archive, keys, pack};
use crate::object::{Etag, ObjectErrorKind, PutCond};
use crate::words::{DbName, PageSize, Pgno, Pos, Seq, Timestamp, Txid};

/// A whole database as it stands at one position: local data that a snapshot is
/// made of, so that nothing has to be downloaded.
pub trait SnapshotSource {
    /// The position.
    fn pos(&self) -> Pos;
    /// The page size there.
    fn page_size(&self) -> PageSize;
    /// The size there, in pages.
    fn commit(&self) -> u32;
    /// Reads a page into `page`; asked for in ascending order, each once, never for
    /// the lock page.
    ///
    /// # Errors
    /// The snapshot is given up.
    fn page(&mut self, pgno: Pgno, page: &mut [u8]) -> io::Result<()>;
}

/// Gives local images of databases.
pub trait Snapshots: Sync {
    /// The database as it is now, or `None`: then the snapshot is made from what is
    /// in the archive.
    fn open(&self, db: &DbName) -> Option<Box<dyn SnapshotSource + '_>>;
}

/// No local data.
impl Snapshots for () {
    fn open(&self, _: &DbName) -> Option<Box<dyn SnapshotSource + '_>> {
        None
    }
}

/// What upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkept {
    /// Versions of the manifest written.
    pub rounds: u64,
    /// Objects made.
    pub made: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects deleted.
    pub deleted: u64,
}

/// What an act changes in the manifest.
#[derive(Default)]
struct Edit {
    horizon: Option<Link>,
    standings: BTreeMap<DbName, Standing>,
    add: Vec<(DbName, ObjectRef)>,
    retire: Vec<(DbName, String)>,
    doom: Vec<String>,
    deleted: Vec<String>,
}

/// A manifest changes at most so often in one upkeep.
const MAX_ROUNDS: u64 = 64;
/// So often upkeep starts again because someone else changed the manifest.
const ATTEMPTS: usize = 4;

impl Writer {
    /// Does what is due. Cheap when nothing is: no request then. `Stopping` ends
    /// other upkeep that is under way, soon and with `Cancelled`.
    ///
    /// # Errors
    /// `Fenced` when another node is the writer now; else try again later.
    pub fn upkeep(&self, occasion: Occasion, snapshots: &dyn Snapshots) -> Result<Upkept, PutError> {
        if occasion == Occasion::Stopping {
            self.stopping.store(true, Ordering::SeqCst);
        }
        let _one_at_a_time = self.upkeep.lock();
        self.stopping.store(false, Ordering::SeqCst);
        let mut done = Upkept::default();
        let mut conflicts = 0;
        while done.rounds < MAX_ROUNDS {
            if let Some(by) = self.fenced() {
                return Err(PutError::Fenced { by });
            }
            match self.round(occasion, snapshots, &mut done) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.is_outdated() && conflicts < ATTEMPTS => {
                    conflicts += 1;
                    self.catch_up()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Reads the manifest again that someone else changed.
    fn catch_up(&self) -> Result<(), PutError> {
        let found = self.archive.head()?;
        if found.epoch() > self.epoch() {
            let Link { seq, epoch, writer, .. } = found.last;
            return Err(PutError::Fenced { by: Fence { seq, epoch, node: writer.node } });
        }
        self.rebase(found.manifest, found.etag);
        Ok(())
    }

    /// The head goes over to another manifest, whose horizon it reaches.
    fn rebase(&self, manifest: Arc<Manifest>, etag: Etag) {
        let mut head = self.head.write();
        if let Some(rebased) = head.rebase(manifest, etag) {
            *head = rebased;
        }
    }

    /// One plan, performed, and one change of the manifest. False if there was
    /// nothing to do.
    fn round(
        &self,
        occasion: Occasion,
        snapshots: &dyn Snapshots,
        done: &mut Upkept,
    ) -> Result<bool, ArchiveError> {
        let now = self.archive.options.clock.now();
        let acts = self.with_head(|head| plan_upkeep(head, now, occasion, &self.archive.options));
        if acts.is_empty() {
            return Ok(false);
        }
        let head = self.head();
        let watch = |_: Progress| occasion == Occasion::Stopping || !self.stopping.load(Ordering::SeqCst);
        let job = Job { archive: &self.archive, head: &head, snapshots, watch: &watch };
        let mut edits = Vec::new();
        for edit in in_parallel(self.archive.options.parallel / 2, &acts, |act| job.perform(act)) {
            edits.push(edit?);
        }
        let mut manifest = head.manifest().clone();
        for edit in &edits {
            done.made += edit.add.len() as u64;
            done.bytes += edit.add.iter().map(|(_, object)| object.size).sum::<u64>();
            done.deleted += edit.deleted.len() as u64;
            apply(&mut manifest, edit, now);
        }
        if manifest == *head.manifest() {
            return Ok(false);
        }
        let (manifest, etag) = self.archive.swap_manifest(manifest, head.etag(), now)?;
        done.rounds += 1;
        self.rebase(manifest, etag);
        Ok(true)
    }
}

fn apply(manifest: &mut Manifest, edit: &Edit, now: Timestamp) {
    if let Some(horizon) = edit.horizon {
        manifest.horizon = horizon;
    }
    for (db, stands) in &edit.standings {
        let Standing { pos, page_size, commit, timestamp } = *stands;
        let fresh = || Database { pos, page_size, commit, timestamp, objects: Vec::new() };
        let database = manifest.databases.entry(db.clone()).or_insert_with(fresh);
        (database.pos, database.page_size) = (pos, page_size);
        (database.commit, database.timestamp) = (commit, timestamp);
    }
    let mut doomed: BTreeSet<String> = edit.doom.iter().cloned().collect();
    for (db, key) in &edit.retire {
        if let Some(database) = manifest.databases.get_mut(db) {
            database.objects.retain(|object| &object.key != key);
        }
        doomed.insert(key.clone());
    }
    for (db, object) in &edit.add {
        manifest.doomed.retain(|doomed| doomed.key != object.key);
        doomed.remove(&object.key);
        if let Some(database) = manifest.databases.get_mut(db) {
            database.objects.retain(|other| other.key != object.key);
            database.objects.push(object.clone());
            database.sort();
        }
    }
    manifest.doomed.extend(doomed.into_iter().map(|key| Doomed { key, since: now }));
    manifest.doomed.retain(|doomed| !edit.deleted.contains(&doomed.key));
}

impl Archive {
    /// Puts a manifest over the version `etag`. A lost reply is resolved by reading.
    fn swap_manifest(
        &self,
        mut manifest: Manifest,
        etag: &Etag,
        now: Timestamp,
    ) -> Result<(Arc<Manifest>, Etag), ArchiveError> {
        self.pass("archive.manifest")?;
        manifest.nonce = (self.options.random)();
        manifest.updated = now;
        let body = encode(&manifest)?;
        let error = match self.store.put(keys::MANIFEST, body, PutCond::IfMatch(etag.clone())) {
            Ok(etag) => return Ok((Arc::new(manifest), etag)),
            Err(error) => error,
        };
        if !matches!(error.kind, ObjectErrorKind::Precondition | ObjectErrorKind::Unknown) {
            return Err(error.into());
        }
        match read_manifest(self.store.as_ref())? {
            Some((found, etag)) if found.nonce == manifest.nonce => Ok((Arc::new(manifest), etag)),
            Some((_, found)) if found == *etag => Err(error.into()),
            Some(_) | None => Err(ArchiveError::Conflict),
        }
    }

    pub(super) fn pass(&self, point: &str) -> Result<(), ArchiveError> {
        self.options.faults.pass(point).map_err(ArchiveError::local(point))
    }
}

/// What performing an act needs.
struct Job<'a> {
    archive: &'a Archive,
    head: &'a Head,
    snapshots: &'a dyn Snapshots,
    watch: &'a dyn Watch,
}

impl Job<'_> {
    fn perform(&self, act: &Act) -> Result<Edit, ArchiveError> {
        self.archive.pass("archive.upkeep")?;
        match act {
            Act::Compact { upto } => self.compact(*upto),
            Act::Merge { db, level, objects } => self.merge_level(db, *level, objects),
            Act::Repack { db, objects } => self.repack(db, objects),
            Act::Snapshot { db } => self.snapshot(db),
            Act::Retire { db, keys } => {
                let retire = keys.iter().map(|key| (db.clone(), key.clone())).collect();
                Ok(Edit { retire, ..Edit::default() })
            }
            Act::Delete { keys } => {
                let gone =
                    in_parallel(self.archive.options.parallel, keys, |key| self.archive.store.delete(key));
                gone.into_iter().collect::<Result<Vec<()>, _>>()?;
                Ok(Edit { deleted: keys.clone(), ..Edit::default() })
            }
        }
    }

    fn compact(&self, upto: Seq) -> Result<Edit, ArchiveError> {
        let mut edit = Edit::default();
        for tail in self.head.tail().iter().filter(|tail| tail.segment.head.seq <= upto) {
            let segment = &tail.segment;
            let head = segment.head;
            edit.horizon =
                Some(Link { seq: head.seq, sum: segment.sum, epoch: head.epoch, writer: head.writer });
            // A seal is never deleted: a writer of the epoch before may sleep for
            // long, and its next put must still find this number taken.
            if !head.seal {
                edit.doom.push(keys::segment(head.seq));
            }
            for entry in &segment.entries {
                let Change { post: pos, page_size, commit, timestamp, .. } = entry.change;
                edit.standings.insert(entry.db.clone(), Standing { pos, page_size, commit, timestamp });
            }
        }
        let stretches = stretches(self.head, upto);
        let made = in_parallel(self.archive.options.parallel, &stretches, |stretch| self.stretch(stretch));
        for (stretch, made) in stretches.iter().zip(made) {
            edit.add.extend(made?.into_iter().map(|object| (stretch.db.clone(), object)));
        }
        Ok(edit)
    }

    /// Makes a pack and a merged file of a stretch.
    fn stretch(&self, stretch: &Stretch) -> Result<Vec<ObjectRef>, ArchiveError> {
        let db = &stretch.db;
        let [(_, first, place), ..] = stretch.entries.as_slice() else { return Ok(Vec::new()) };
        if let Place::Object { key, size } = place {
            let (key, size, change) = (key.clone(), *size, *first);
            let first = change.timestamp;
            return Ok(vec![ObjectRef { key, kind: Kind::Change, change, first, size, sum: None }]);
        }
        let changes = self.bodies(stretch)?;
        let mut made = Vec::new();
        // A merged file of one transaction keeps it restorable by itself.
        if changes.len() > 1 || first.min() != first.max() {
            made.push(self.pack(db, &changes)?);
        }
        let steps = changes.iter().map(|(change, bytes)| {
            let len = bytes.len() as u64;
            let parts = vec![Part { change: *change, offset: 0, len }];
            let source = Source::Parts(parts, Some(bytes.clone()));
            Step { key: format!("(the log of {db})"), size: len, change: *change, source }
        });
        let merged = self.archive.merge(&plan_of(db, steps.collect(), first.pre)?, self.watch)?;
        made.push(self.keep(db, Kind::Merged(1), &merged, first.timestamp)?);
        Ok(made)
    }

    /// The LTX of each change set of a stretch.
    fn bodies(&self, stretch: &Stretch) -> Result<Vec<(Change, Bytes)>, ArchiveError> {
        let mut changes = Vec::with_capacity(stretch.entries.len());
        for run in stretch.entries.chunk_by(|a, b| a.0 == b.0) {
            let [(seq, change, _), ..] = run else { continue };
            let parts: Vec<Part> = run
                .iter()
                .filter_map(|(_, change, place)| match place {
                    Place::Here { offset, len } => Some(Part { change: *change, offset: *offset, len: *len }),
                    Place::Object { .. } => None,
                })
                .collect();
            let at_hand = self.head.tail().iter().find(|tail| tail.segment.head.seq == *seq);
            let bytes = at_hand.and_then(|tail| tail.bytes.clone());
            let source = Source::Parts(parts, bytes);
            let step = Step { key: keys::segment(*seq), size: 0, change: *change, source };
            for ltx in self.archive.load(&step)? {
                changes.push(body(ltx)?);
            }
        }
        Ok(changes)
    }

    fn pack(&self, db: &DbName, changes: &[(Change, Bytes)]) -> Result<ObjectRef, ArchiveError> {
        let (Some((first, _)), Some((last, _))) = (changes.first(), changes.last()) else {
            return Err(ArchiveError::damaged(keys::MANIFEST, format!("an empty pack of database {db}")));
        };
        let pages = changes.iter().map(|(change, _)| change.pages).fold(0_u32, u32::saturating_add);
        let change = Change { pre: first.pre, pages: pages.min(last.commit), ..*last };
        let bytes = pack::encode(db, changes);
        let (size, sum) = (bytes.len() as u64, checksum(CrcAlgorithm::Crc64Nvme, &bytes));
        let key = key_of(db, Kind::Pack, &change);
        let object =
            ObjectRef { key, kind: Kind::Pack, change, first: first.timestamp, size, sum: Some(sum) };
        self.archive.pass("archive.upload")?;
        match self.archive.upload_bytes(&object.key, bytes.clone(), sum, change.timestamp)? {
            Uploaded::Ours => Ok(object),
            Uploaded::Other(size) => self.take_over(object, size, |key| {
                self.archive.store.put(key, bytes, PutCond::Always).map(drop).map_err(Into::into)
            }),
        }
    }

    /// Uploads a merged file or snapshot.
    fn keep(
        &self,
        db: &DbName,
        kind: Kind,
        merged: &Merged,
        first: Timestamp,
    ) -> Result<ObjectRef, ArchiveError> {
        let Merged { file, change } = merged;
        let key = key_of(db, kind, change);
        let object = ObjectRef { key, kind, change: *change, first, size: file.size, sum: Some(file.sum) };
        self.archive.pass("archive.upload")?;
        match self.archive.upload(&object.key, file, change.timestamp)? {
            Uploaded::Ours => Ok(object),
            Uploaded::Other(size) => self.take_over(object, size, |key| {
                self.archive.store.put_file_dated(key, file.path(), change.timestamp).map_err(Into::into)
            }),
        }
    }

    /// Another object lies where `object` was to be: if it does the same it will do,
    /// else nobody can need it.
    fn take_over(
        &self,
        object: ObjectRef,
        size: u64,
        replace: impl FnOnce(&str) -> Result<(), ArchiveError>,
    ) -> Result<ObjectRef, ArchiveError> {
        let found = ObjectRef { size, sum: None, ..object.clone() };
        match self.archive.verify_object(&found) {
            Ok(()) => {
                let sum = Some(self.archive.sum_of(&found.key, size)?);
                Ok(ObjectRef { sum, ..found })
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) => replace(&object.key).map(|()| object),
        }
    }

    fn merge_level(&self, db: &DbName, level: u8, objects: &[ObjectRef]) -> Result<Edit, ArchiveError> {
        let Some(first) = objects.first() else { return Ok(Edit::default()) };
        let steps = objects.iter().map(|object| Step {
            key: object.key.clone(),
            size: object.size,
            change: object.change,
            source: Source::Object { sum: object.sum },
        });
        let plan = plan_of(db, steps.collect(), first.change.pre)?;
        let merged = self.archive.merge(&plan, self.watch)?;
        let object = self.keep(db, Kind::Merged(level), &merged, first.first)?;
        Ok(Edit { add: vec![(db.clone(), object)], ..Edit::default() })
    }

    fn repack(&self, db: &DbName, objects: &[ObjectRef]) -> Result<Edit, ArchiveError> {
        let mut changes = Vec::new();
        for object in objects {
            let bytes = self.archive.whole(&object.key, object.size)?;
            if object.sum.is_some_and(|sum| checksum(CrcAlgorithm::Crc64Nvme, &bytes) != sum) {
                return Err(ArchiveError::damaged(&object.key, "its checksum is wrong"));
            }
            let parts = if object.kind == Kind::Pack {
                let entries = pack::decode_head(&bytes).map_err(|e| ArchiveError::damaged(&object.key, e))?;
                entries.iter().filter_map(super::read::part).collect()
            } else {
                vec![Part { change: object.change, offset: 0, len: object.size }]
            };
            for ltx in self.archive.load_parts(&object.key, &parts, Some(&bytes))? {
                changes.push(body(ltx)?);
            }
        }
        let object = self.pack(db, &changes)?;
        Ok(Edit { add: vec![(db.clone(), object)], ..Edit::default() })
    }

    /// A snapshot: of local data if there is any at a position of the chain, else
    /// of what is in the archive.
    fn snapshot(&self, db: &DbName) -> Result<Edit, ArchiveError> {
        let merged = match self.snapshots.open(db) {
            Some(source) => self.local_snapshot(db, source)?,
            None => None,
        };
        let merged = match merged {
            Some(merged) => merged,
            None => {
                let plan = self.archive.plan(self.head, db, Target::Latest)?;
                self.archive.merge(&plan, self.watch)?
            }
        };
        let first = merged.change.timestamp;
        let object = self.keep(db, Kind::Snapshot, &merged, first)?;
        Ok(Edit { add: vec![(db.clone(), object)], ..Edit::default() })
    }

    fn local_snapshot(
        &self,
        db: &DbName,
        mut source: Box<dyn SnapshotSource + '_>,
    ) -> Result<Option<Merged>, ArchiveError> {
        let pos = source.pos();
        let relation = self.archive.relate(self.head, db, pos)?;
        if pos.txid == Txid::ZERO || !matches!(relation, Relation::Head | Relation::Ancestor) {
            return Ok(None);
        }
        let timestamp = self.archive.plan(self.head, db, Target::Txid(pos.txid))?.timestamp;
        let plan = Plan {
            db: db.clone(),
            base: None,
            pos,
            page_size: source.page_size(),
            commit: source.commit(),
            timestamp,
            steps: Vec::new(),
        };
        self.archive.encode_snapshot(&plan, self.watch, |pgno, page| source.page(pgno, page)).map(Some)
    }
}

fn body(ltx: Ltx) -> Result<(Change, Bytes), ArchiveError> {
    match ltx.data {
        Data::Memory(bytes) => Ok((ltx.change, bytes)),
        Data::Remote { .. } => Err(ArchiveError::damaged(&ltx.key, "it is not in memory")),
    }
}

/// The plan of merging these steps, which take a database on from `pre`.
fn plan_of(db: &DbName, steps: Vec<Step>, pre: Pos) -> Result<Plan, ArchiveError> {
    let last = steps.last().map(|step| step.change);
    let Change { post: pos, page_size, commit, timestamp, .. } = last
        .ok_or_else(|| ArchiveError::damaged(keys::MANIFEST, format!("nothing to merge of database {db}")))?;
    let base = (pre.txid != Txid::ZERO).then_some(pre);
    Ok(Plan { db: db.clone(), base, pos, page_size, commit, timestamp, steps })
}
