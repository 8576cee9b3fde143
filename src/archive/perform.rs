//! Performing what upkeep planned: make objects, then say so in the manifest, and
//! only then delete. A crash in between leaves objects that nobody names; the next
//! upkeep takes them over. Must not decide what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::acts::Job;
use super::error::{ArchiveError, Fence, PutError};
use super::head::Standing;
use super::load::{encode, in_parallel, read_manifest};
use super::manifest::{Database, Doomed, Link, Manifest, ObjectRef};
use super::sink::Progress;
use super::upkeep::{Occasion, compact_upto, plan_upkeep};
use super::writer::Writer;
use super::{Archive, keys};
use crate::object::{Etag, ObjectErrorKind, PutCond};
use crate::words::{DbName, PageSize, Pgno, Pos, Timestamp};

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
pub(super) struct Edit {
    pub(super) horizon: Option<Link>,
    pub(super) standings: BTreeMap<DbName, Standing>,
    pub(super) add: Vec<(DbName, ObjectRef)>,
    pub(super) retire: Vec<(DbName, String)>,
    pub(super) doom: Vec<String>,
    pub(super) deleted: Vec<String>,
}

/// A manifest changes at most so often in one upkeep.
const MAX_ROUNDS: u64 = 64;
/// How old a manifest's objects are is looked at no more often: there may be many.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
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
        let mut memory = self.upkeep.lock();
        self.stopping.store(false, Ordering::SeqCst);
        let now = self.archive.options.clock.now();
        let options = &self.archive.options;
        let (nonce, is_quiet) = self.with_head(|head| {
            let nonce = head.manifest().nonce;
            let since = memory.quiet.filter(|(seen, _)| *seen == nonce).map(|(_, since)| since);
            let fresh = since.is_some_and(|since| now.before(LOOK_AGAIN) < since && since <= now);
            (nonce, fresh && occasion == Occasion::Running && compact_upto(head, occasion, options).is_none())
        });
        if is_quiet {
            return Ok(Upkept::default());
        }
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
        if occasion == Occasion::Running && done.rounds == 0 {
            memory.quiet = Some((nonce, now));
        } else if done.rounds > 0 && self.sweep_is_due(memory.swept, now) {
            done.deleted += self.sweep(now)?;
            memory.swept = Some(now);
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
