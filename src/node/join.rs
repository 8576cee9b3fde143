//! Joining the cluster: the archive's head first, then the lease, then the head again,
//! then the seal that stops every earlier writer. Must not serve anything.

use std::sync::Arc;
use std::time::Duration;

use crate::archive::{Archive, ArchiveError, Head, Progress, PutError, Writer};
use crate::lease::{Holder, Lease, Standing, Want};
use crate::object::{ObjectErrorKind, check_conditions, conditions_checked};
use crate::words::{DbName, Epoch};

use super::align::{Aim, Aligned, How, align};
use super::encode::{Style, whole};
use super::run::Node;
use super::service::Stage;
use super::{LeaseChoice, NodeError, OnUnreachable};

/// How long to wait before the storage is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How soon a node that waits for the lease sees that it is told to stop.
const GLANCE: Duration = Duration::from_millis(500);

/// A node that stands at the archive's head, as of when the head was read.
pub(super) struct Joined {
    pub archive: Archive,
    pub head: Head,
    /// Databases of which the archive has nothing, and whose first transactions are no
    /// longer in the change log.
    wholes: Vec<DbName>,
}

impl Joined {
    /// At a head to which every database was brought.
    pub fn at(archive: Archive, head: Head) -> Joined {
        Joined { archive, head, wholes: Vec::new() }
    }
}

/// Says when waiting for the storage has lost its purpose.
pub(super) type GiveUp<'a> = &'a (dyn Fn() -> bool + Sync);

impl Node {
    /// Reads the archive's head and brings every database to it; waits for the storage.
    /// `None` if the storage does not answer and the node may serve what it has.
    pub(super) fn join(&self) -> Result<Option<Joined>, NodeError> {
        let stale =
            self.options.on_unreachable == OnUnreachable::ServeStale && self.store.cluster().is_some();
        if stale {
            match self.try_join(How::Offline, &|| self.stopping()) {
                Err(NodeError::Archive(error)) if waits(&error) => {
                    tracing::warn!(%error, "the archive cannot be used: serving reads from what is here");
                    self.service.update(|parts| parts.waiting_for = Some(error.to_string()));
                    return Ok(None);
                }
                joined => return joined.map(Some),
            }
        }
        let give_up = || self.stopping();
        let (archive, head) = self.persist(&give_up, || self.open_archive())?;
        self.check_cluster(&archive)?;
        let mut joined = Joined::at(archive, head);
        self.bring(&mut joined, (How::Offline, Aim::Write), &give_up)?;
        Ok(Some(joined))
    }

    /// One attempt to join.
    pub(super) fn try_join(&self, how: How, give_up: GiveUp<'_>) -> Result<Joined, NodeError> {
        let (archive, head) = self.open_archive()?;
        self.check_cluster(&archive)?;
        let wholes =
            align(&self.store, &archive, &head, (how, Aim::Follow), &|_: Progress| !give_up())?.wholes;
        Ok(Joined { archive, head, wholes })
    }

    /// The archive and its head, in a storage that can hold a lease: nothing is written to
    /// one that cannot, nor to one that is not the archive's. A node that belongs to a
    /// cluster makes no new archive: what it is to find is gone, or elsewhere.
    fn open_archive(&self) -> Result<(Archive, Head), ArchiveError> {
        let (storage, options) = (&self.options.storage, &self.options.archive);
        let is_static = matches!(self.options.lease, LeaseChoice::Static);
        let (opened, checked) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| if is_static { Ok(true) } else { conditions_checked(storage) });
            let opened = Archive::open_at_head(Arc::clone(storage), options.clone());
            (opened, asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let found = match opened {
            Err(ArchiveError::NoArchive { .. }) if self.store.cluster().is_none() => None,
            opened => Some(opened?),
        };
        if !checked? {
            check_conditions(storage)?;
        }
        match found {
            Some(found) => Ok(found),
            None => {
                let archive = Archive::open_or_init(Arc::clone(storage), options.clone())?;
                archive.head().map(|head| (archive, head))
            }
        }
    }

    /// Brings every database to the head as it is now.
    fn bring(
        &self,
        joined: &mut Joined,
        how: (How, Aim<'_>),
        give_up: GiveUp<'_>,
    ) -> Result<Aligned, NodeError> {
        let watch = |_: Progress| !give_up();
        let aligned = self.persist(give_up, || {
            match align(&self.store, &joined.archive, &joined.head, how, &watch) {
                Ok(aligned) => Ok(Ok(aligned)),
                Err(NodeError::Archive(error)) => {
                    if error.is_outdated() {
                        joined.archive.refresh(&mut joined.head)?;
                    }
                    Err(error)
                }
                Err(error) => Ok(Err(error)),
            }
        })??;
        joined.wholes.clone_from(&aligned.wholes);
        Ok(aligned)
    }

    /// Becomes the archive's writer in `epoch`, which the lease gave, at its head;
    /// `None` if the lease or the epoch is not good any more.
    pub(super) fn take(
        &self,
        joined: &mut Joined,
        lease: &dyn Lease,
        epoch: Epoch,
        how: How,
    ) -> Result<Option<Writer>, NodeError> {
        let held = || lease.standing().holder.this() == Some(epoch);
        let give_up = || self.stopping() || !held();
        match self.take_held(joined, epoch, how, &give_up) {
            Err(NodeError::Stopped) if !self.stopping() => Ok(None),
            Ok(None) => {
                // An epoch after those that the archive has seen.
                lease.want(Want::Hold { after: joined.head.epoch() });
                Ok(None)
            }
            taken => taken,
        }
    }

    fn take_held(
        &self,
        joined: &mut Joined,
        epoch: Epoch,
        how: How,
        give_up: GiveUp<'_>,
    ) -> Result<Option<Writer>, NodeError> {
        // A node that starts has just read the head: its seal fails if it is not the head
        // any more.
        let mut is_fresh = how == How::Offline;
        loop {
            if !std::mem::take(&mut is_fresh) {
                // What an earlier holder put before its term ended comes first.
                self.persist(give_up, || joined.archive.refresh(&mut joined.head))?;
                self.bring(joined, (how, Aim::Write), give_up)?;
            }
            if joined.head.epoch() >= epoch {
                return Ok(None);
            }
            if give_up() {
                return Err(NodeError::Stopped);
            }
            let sealed = self.persist(give_up, || {
                let head = joined.head.clone();
                match Writer::seal_after(&joined.archive, head, epoch, self.store.node_id()) {
                    Ok(writer) => Ok(Ok(Some(writer))),
                    Err(PutError::Fenced { by }) => {
                        tracing::warn!(%by, "another writer came first: reading the head again");
                        Ok(Ok(None))
                    }
                    Err(PutError::Unreachable(error)) => Err(error.into()),
                    Err(PutError::Refused(error)) => Err(error),
                    Err(error) => Ok(Err(error)),
                }
            })??;
            let Some(writer) = sealed else { continue };
            if writer.with_head(|sealed| sealed.databases() != joined.head.databases()) {
                // Somebody put between the head that was aligned with and the seal.
                joined.head = writer.head();
                self.bring(joined, (how, Aim::Write), give_up)?;
            }
            self.publish_wholes(&writer, &joined.wholes, give_up)?;
            self.store.set_epoch(epoch)?;
            tracing::info!(archive = %self.options.storage.describe(), %epoch, seq = %writer.head().seq(), "at the archive's head");
            return Ok(Some(writer));
        }
    }

    /// The writer, if this node is to be the primary from the start; waits until the
    /// lease is settled. `None` if another node holds it, or this one does not want it.
    pub(super) fn take_first(
        &self,
        joined: &mut Joined,
        lease: &dyn Lease,
    ) -> Result<Option<Writer>, NodeError> {
        if !self.options.candidate {
            self.bring(joined, (How::Offline, Aim::Follow), &|| self.stopping())?;
            return Ok(None);
        }
        lease.want(Want::Hold { after: joined.head.epoch() });
        let mut said = None;
        loop {
            let settled = |standing: &Standing| match standing.holder {
                Holder::This { .. } | Holder::Other { .. } => true,
                Holder::Unknown | Holder::Nobody => false,
            };
            let standing = lease.wait(GLANCE, &mut |standing| settled(standing));
            if self.stopping() {
                return Err(NodeError::Stopped);
            }
            match standing.map(|standing| standing.holder) {
                Some(Holder::This { epoch, .. }) => {
                    self.service.update(|parts| parts.waiting_for = None);
                    if let Some(writer) = self.take(joined, lease, epoch, How::Offline)? {
                        return Ok(Some(writer));
                    }
                }
                Some(_) => {
                    self.service.update(|parts| parts.waiting_for = None);
                    self.bring(joined, (How::Offline, Aim::Follow), &|| self.stopping())?;
                    return Ok(None);
                }
                None => {
                    let why = reason(&lease.standing());
                    if said.as_ref() != Some(&why) {
                        tracing::info!("waiting for the lease: {why}");
                        self.service.update(|parts| parts.waiting_for = Some(format!("the lease: {why}")));
                        said = Some(why);
                    }
                }
            }
        }
    }

    fn waits(&self, error: &ArchiveError) -> bool {
        let serves = self.service.parts(|parts| parts.stage == Stage::Serving);
        if serves { waits_serving(error) } else { waits(error) }
    }

    fn check_cluster(&self, archive: &Archive) -> Result<(), NodeError> {
        match self.store.cluster() {
            Some(local) if local != archive.cluster() => Err(NodeError::OtherCluster {
                local,
                found: archive.cluster(),
                archive: self.options.storage.describe(),
            }),
            Some(_) => Ok(()),
            None => Ok(self.store.set_cluster(archive.cluster())?),
        }
    }

    fn publish_wholes(
        &self,
        writer: &Writer,
        wholes: &[DbName],
        give_up: GiveUp<'_>,
    ) -> Result<(), NodeError> {
        for name in wholes {
            let Some(database) = self.store.database(name) else { continue };
            let Some(image) = database.image(self.store.dir())? else { continue };
            let style = Style {
                codec: self.options.archive.codec,
                node: self.store.node_id(),
                spool: &self.options.archive.spool,
            };
            let failed =
                |error: &dyn std::fmt::Display| NodeError::Align { db: name.clone(), why: error.to_string() };
            let set =
                whole(name, &image, self.options.clock.now(), &style).map_err(|error| failed(&error))?;
            self.persist(give_up, || match writer.put(std::slice::from_ref(&set)) {
                Ok(_) => Ok(Ok(())),
                Err(PutError::Unreachable(error)) => Err(error.into()),
                Err(PutError::Refused(error)) => Err(error),
                Err(error) => Ok(Err(error)),
            })??;
            tracing::info!(db = %name, pos = %image.pos, "published as a whole: the archive had nothing of it");
        }
        Ok(())
    }

    /// Tries until it works, a failure that waiting cannot mend, or there is no more
    /// reason to. Says so once.
    fn persist<T>(
        &self,
        give_up: GiveUp<'_>,
        mut attempt: impl FnMut() -> Result<T, ArchiveError>,
    ) -> Result<T, NodeError> {
        let mut pause = FIRST_PAUSE;
        let mut said = false;
        loop {
            match attempt() {
                Ok(value) => {
                    if said {
                        tracing::info!("the archive is there again");
                        self.service.update(|parts| parts.waiting_for = None);
                    }
                    return Ok(value);
                }
                Err(ArchiveError::Cancelled) if give_up() => return Err(NodeError::Stopped),
                Err(error) if !self.waits(&error) => return Err(error.into()),
                Err(error) => {
                    if !said {
                        tracing::warn!(%error, "the archive cannot be used: waiting for it");
                        said = true;
                    }
                    self.service.update(|parts| parts.waiting_for = Some(error.to_string()));
                }
            }
            if give_up() {
                return Err(NodeError::Stopped);
            }
            self.store.commits().pause(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What a node that waits for the lease waits for.
fn reason(standing: &Standing) -> String {
    if let Some(trouble) = &standing.trouble {
        return trouble.clone();
    }
    match &standing.holder {
        Holder::Other { member, epoch, .. } => format!("{} holds it in epoch {epoch}", member.hostname),
        Holder::Unknown | Holder::Nobody | Holder::This { .. } => "asking for it".to_owned(),
    }
}

/// Whether waiting may mend it: the storage is out of reach, or upkeep took away what
/// was about to be read.
fn waits(error: &ArchiveError) -> bool {
    error.is_transient() || error.is_outdated()
}

/// As `waits`, for a node that serves: it goes on while the storage refuses it (rights,
/// credentials that have expired, this machine's clock), which is mended from outside.
pub(super) fn waits_serving(error: &ArchiveError) -> bool {
    waits(error) || matches!(error, ArchiveError::Object(error) if error.kind == ObjectErrorKind::Refused)
}
