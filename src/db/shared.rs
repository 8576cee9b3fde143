//! What all databases of a node share: the log, the clock, the mount, whether this
//! node may write, and who is told of a commit. Must not know which databases exist.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{ChangeLog, ChangeMeta, OwnMount, Place};
use crate::words::{Clock, Faults};

/// A captured transaction, as those who wait for commits are told of it.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Where the log has it.
    pub place: Place,
    /// Its facts.
    pub meta: ChangeMeta,
    /// How many pages it has.
    pub pages: u32,
}

/// What became of a transaction that waited for the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The archive has it.
    Archived,
    /// This node may not write any more, or stops: nobody knows whether the archive
    /// will have it.
    Refused,
}

/// Is told the verdict, on whatever thread finds it out: must return at once and must
/// not call the database.
pub type Done = Box<dyn FnOnce(Verdict) + Send>;

/// Is told of every captured transaction, in commit order per database, by the
/// thread that captured it and while the database is locked: must return at once and
/// must not call the database.
pub trait CommitListener: Send + Sync {
    /// A transaction was captured.
    fn committed(&self, committed: Committed);

    /// A transaction of another node was applied that the archive does not have yet.
    fn applied(&self, committed: Committed) {
        let _ = committed;
    }

    /// Who reads the database sees another position now, captured or applied.
    fn moved(&self) {}

    /// Whether there is room for no more.
    fn is_full(&self) -> bool {
        false
    }

    /// A transaction was captured that counts only once the archive has it.
    fn waits(&self, committed: Committed, done: Done);

    /// The archive has it, and now it counts.
    fn counts(&self, committed: Committed);
}

/// What all databases of a node share.
pub struct Shared {
    /// `<data>/dbs`.
    pub root: PathBuf,
    /// The change log.
    pub log: ChangeLog,
    /// Wall time for change sets.
    pub clock: Arc<dyn Clock>,
    /// Fail points.
    pub faults: Faults,
    /// Who is told of commits.
    pub listener: Arc<dyn CommitListener>,
    own: RwLock<Option<Arc<dyn OwnMount>>>,
    writable: AtomicBool,
    archive_first: AtomicBool,
}

impl Shared {
    /// A node's shared parts; no mount yet, and not writable.
    pub fn new(
        root: PathBuf,
        log: ChangeLog,
        clock: Arc<dyn Clock>,
        faults: Faults,
        listener: Arc<dyn CommitListener>,
    ) -> Shared {
        Shared {
            root,
            log,
            clock,
            faults,
            listener,
            own: RwLock::default(),
            writable: AtomicBool::new(false),
            archive_first: AtomicBool::new(false),
        }
    }

    /// The mount, while there is one.
    pub fn own(&self) -> Option<Arc<dyn OwnMount>> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets or takes away the mount.
    pub fn set_own(&self, own: Option<Arc<dyn OwnMount>>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// Whether applications may write here.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Whether a commit counts only once the archive has it.
    pub fn archive_first(&self) -> bool {
        self.archive_first.load(Ordering::Acquire)
    }

    /// Sets whether a commit counts only once the archive has it; before the first open.
    pub fn set_archive_first(&self, archive_first: bool) {
        self.archive_first.store(archive_first, Ordering::Release);
    }

    /// Sets whether applications may write here.
    pub fn set_writable(&self, writable: bool) {
        self.writable.store(writable, Ordering::Release);
    }
}
