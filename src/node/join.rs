//! Joining the cluster: the archive's head first, then the lease, then the head again,
//! then the seal that stops every earlier writer. Must not serve anything.

use std::time::Duration;

use crate::archive::{Archive, ArchiveError, Head, Progress, PutError, Writer};
use crate::lease::{Holder, Lease, Standing, Want};
use crate::object::check_conditions;
use crate::words::{DbName, Epoch};

use super::align::align;
use super::encode::{Style, whole};
use super::run::Node;
use super::{LeaseChoice, NodeError};

/// How long to wait before the storage is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How soon a node that waits for the lease sees that it is told to stop.
const GLANCE: Duration = Duration::from_millis(500);

impl Node {
    /// Becomes the archive's writer, at its head, in an epoch that the lease gave.
    pub(super) fn join(&self, lease: &dyn Lease) -> Result<Writer, NodeError> {
        if matches!(self.options.lease, LeaseChoice::Storage { .. }) {
            self.persist(|| Ok(check_conditions(&self.options.storage)?))?;
        }
        let archive = self
            .persist(|| Archive::open_or_init(self.options.storage.clone(), self.options.archive.clone()))?;
        self.check_cluster(&archive)?;
        let mut head = self.head(&archive)?.0;
        loop {
            let epoch = self.hold(lease, head.epoch())?;
            // What an earlier holder put before its term ended comes first.
            let (newer, wholes) = self.head(&archive)?;
            head = newer;
            if head.epoch() >= epoch || lease.standing().holder.this() != Some(epoch) {
                continue;
            }
            let sealed = self.persist(|| match Writer::seal(&archive, epoch, self.store.node_id()) {
                Ok(writer) => Ok(Ok(Some(writer))),
                Err(PutError::Fenced { by }) => {
                    tracing::warn!(%by, "another writer came first: reading the head again");
                    Ok(Ok(None))
                }
                Err(PutError::Unreachable(error)) => Err(error.into()),
                Err(PutError::Refused(error)) => Err(error),
                Err(error) => Ok(Err(error)),
            })??;
            let Some(writer) = sealed else {
                head = self.head(&archive)?.0;
                continue;
            };
            if self.was_overtaken(&writer, &head) {
                // Somebody put between the head that was aligned with and the seal.
                self.head(&archive)?;
            }
            self.publish_wholes(&writer, &wholes)?;
            tracing::info!(archive = %self.options.storage.describe(), %epoch, seq = %writer.head().seq(), "at the archive's head");
            return Ok(writer);
        }
    }

    /// Whether the log went on between `head` and the writer's seal.
    fn was_overtaken(&self, writer: &Writer, head: &Head) -> bool {
        writer.with_head(|sealed| sealed.databases() != head.databases())
    }

    /// The archive's head, with every database brought to it.
    fn head(&self, archive: &Archive) -> Result<(Head, Vec<DbName>), NodeError> {
        self.persist(|| {
            let head = archive.head()?;
            let watch = |_: Progress| !self.stopping();
            match align(&self.store, archive, &head, &watch) {
                Ok(wholes) => Ok(Ok((head, wholes))),
                Err(NodeError::Archive(error)) => Err(error),
                Err(error) => Ok(Err(error)),
            }
        })?
    }

    /// Waits until this node holds the lease.
    fn hold(&self, lease: &dyn Lease, after: Epoch) -> Result<Epoch, NodeError> {
        lease.want(Want::Hold { after });
        let mut said = None;
        loop {
            let standing = lease.wait(GLANCE, &mut |standing| standing.holder.this().is_some());
            if let Some(epoch) = standing.as_ref().and_then(|standing| standing.holder.this()) {
                self.service.update(|parts| parts.waiting_for = None);
                return Ok(epoch);
            }
            if self.stopping() {
                return Err(NodeError::Stopped);
            }
            let why = reason(&lease.standing());
            if said.as_ref() != Some(&why) {
                tracing::info!("waiting for the lease: {why}");
                self.service.update(|parts| parts.waiting_for = Some(format!("the lease: {why}")));
                said = Some(why);
            }
        }
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

    /// Databases of which the archive has nothing, and whose first transactions are no
    /// longer in the change log.
    fn publish_wholes(&self, writer: &Writer, wholes: &[DbName]) -> Result<(), NodeError> {
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
            self.persist(|| match writer.put(std::slice::from_ref(&set)) {
                Ok(_) => Ok(Ok(())),
                Err(PutError::Unreachable(error)) => Err(error.into()),
                Err(PutError::Refused(error)) => Err(error),
                Err(error) => Ok(Err(error)),
            })??;
            tracing::info!(db = %name, pos = %image.pos, "published as a whole: the archive had nothing of it");
        }
        Ok(())
    }

    /// Tries until it works, a failure that waiting cannot mend, or the node is told to
    /// stop. Says so once.
    fn persist<T>(&self, mut attempt: impl FnMut() -> Result<T, ArchiveError>) -> Result<T, NodeError> {
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
                Err(ArchiveError::Cancelled) if self.stopping() => return Err(NodeError::Stopped),
                Err(error) if !waits(&error) => return Err(error.into()),
                Err(error) => {
                    if !said {
                        tracing::warn!(%error, "the archive cannot be used: waiting for it before serving");
                        said = true;
                    }
                    self.service.update(|parts| parts.waiting_for = Some(error.to_string()));
                }
            }
            if self.stopping() {
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
        Holder::Other { member, epoch } => format!("{} holds it in epoch {epoch}", member.hostname),
        Holder::Unknown | Holder::Nobody | Holder::This { .. } => "asking for it".to_owned(),
    }
}

/// Whether waiting may mend it: the storage is out of reach, or upkeep took away what
/// was about to be read.
fn waits(error: &ArchiveError) -> bool {
    error.is_transient() || error.is_outdated()
}
