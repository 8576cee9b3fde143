//! The acts of upkeep: each makes its objects and says what is to change in the
//! manifest. Must not change the manifest itself.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::change::{Change, Place};
use super::error::ArchiveError;
use super::head::{Head, Standing};
use super::load::in_parallel;
use super::manifest::{Kind, Link, ObjectRef};
use super::merge::Merged;
use super::perform::{Edit, SnapshotSource, Snapshots};
use super::plan::{Part, Plan, Relation, Source, Step, Target};
use super::read::{Data, Ltx};
use super::sink::Watch;
use super::spool::Uploaded;
use super::upkeep::{Act, Stretch, key_of, stretches};
use super::{Archive, keys, pack};
use crate::object::PutCond;
use crate::words::{DbName, Pos, Seq, Timestamp, Txid};

/// What performing an act needs.
pub(super) struct Job<'a> {
    pub(super) archive: &'a Archive,
    pub(super) head: &'a Head,
    pub(super) snapshots: &'a dyn Snapshots,
    pub(super) watch: &'a dyn Watch,
}

impl Job<'_> {
    pub(super) fn perform(&self, act: &Act) -> Result<Edit, ArchiveError> {
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
