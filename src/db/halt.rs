//! The halt lock: a database that another node's applications may write for a while. On
//! the replica that holds it, its applications may write, and a commit counts only once
//! the primary has taken it, as with `storage.durability = "archive"` (`waiting`). On the
//! primary, its applications wait, and what the replica commits is applied. Must not know
//! who holds it, or for how long.
//!
//! Whatever is lost on the way, the replica's log has no transaction that the primary has
//! not taken. A mark file says so for recovery: what is prepared in the log was not
//! committed, and what WAL and journal hold beyond the log does not count.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::waiting::Waiting;
use super::{Committed, Database, DbError, Done};
use crate::words::Pos;

/// Takes commits to whoever gives out the chain's next position.
pub trait Forward: Send + Sync {
    /// Hands over a commit, by the thread that makes it and while the database is locked:
    /// must return at once and must not call the database.
    fn forward(&self, committed: Committed, done: Done);
}

/// What a database knows of the halt lock.
#[derive(Default)]
pub(super) struct Halt {
    /// Where commits go, on the replica: from when it has the lock until applications are
    /// kept from writing again.
    forward: Mutex<Option<Arc<dyn Forward>>>,
    /// Whether there is such.
    on: AtomicBool,
    /// Whether applications of the replica may begin to write.
    open: AtomicBool,
    marked: AtomicBool,
    /// Whether applications of the primary wait for another node.
    pub(super) reserving: AtomicBool,
}

impl Database {
    /// Whether this node holds the halt lock, or the last transactions under it are not
    /// over.
    pub fn is_halted(&self) -> bool {
        self.halt.on.load(Ordering::Acquire)
    }

    /// Whether applications may begin to write here.
    pub(super) fn writable(&self) -> bool {
        self.shared.writable() || self.halt.open.load(Ordering::Acquire)
    }

    /// Applications may write from now on; their commits go to `forward`. The node must
    /// be a replica, and the primary must give out positions to nobody else.
    pub fn begin_halt(&self, forward: Arc<dyn Forward>) -> Result<(), DbError> {
        let mut hold = self.hold();
        self.put_mark()?;
        // What was applied is committed, not only prepared.
        self.shared.log.sync()?;
        let path = self.paths.halted();
        File::create(&path).map_err(DbError::io("create", &path))?;
        self.sync_names()?;
        self.halt.marked.store(true, Ordering::Release);
        *self.forwarder() = Some(forward);
        self.halt.on.store(true, Ordering::Release);
        self.halt.open.store(true, Ordering::Release);
        self.let_go(&mut hold)
    }

    /// Applications may begin no more to write: the lock is lost, or given back. A commit
    /// that is under way is still handed over.
    pub fn lose_halt(&self) {
        self.halt.open.store(false, Ordering::Release);
    }

    /// Applications cannot write any more.
    ///
    /// # Errors
    /// `Busy` if a transaction goes on for longer than `patience`: it will fail, and what
    /// comes from the primary waits for its end.
    pub fn end_halt(&self, patience: Duration) -> Result<(), DbError> {
        self.lose_halt();
        self.hold_writers(patience)?;
        self.forget_halt()
    }

    /// The lock is of no importance any more: nobody writes here but the daemon, or this
    /// node is the primary.
    pub(super) fn forget_halt(&self) -> Result<(), DbError> {
        self.lose_halt();
        self.remove_halt_mark()?;
        self.halt.on.store(false, Ordering::Release);
        *self.forwarder() = None;
        Ok(())
    }

    /// What is prepared from here on was applied.
    pub(super) fn remove_halt_mark(&self) -> Result<(), DbError> {
        if !self.halt.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        self.sync_journal()?;
        self.remove_marks(&[self.paths.halted()])?;
        self.halt.marked.store(false, Ordering::Release);
        Ok(())
    }

    /// Whether a commit that leads to `pos` waits for the primary here.
    pub fn awaits(&self, pos: Pos) -> bool {
        self.is_halted() && self.lock().waiting.as_ref().is_some_and(|waiting| waiting.post() == pos)
    }

    /// Hands a commit to whoever has to have it before it counts.
    pub(super) fn hand_over(&self, committed: Committed, done: Done) {
        let forward = self.forwarder().clone();
        match forward {
            Some(forward) => forward.forward(committed, done),
            None => self.shared.listener.waits(committed, done),
        }
    }

    /// Tells that a commit counts.
    pub(super) fn tell_counts(&self, committed: Committed) {
        // The primary puts it into the archive, unless this node takes over before.
        if self.is_halted() {
            self.shared.listener.applied(committed);
        } else {
            self.shared.listener.counts(committed);
        }
    }

    fn forwarder(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Forward>>> {
        self.halt.forward.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Where it leads.
    fn post(&self) -> Pos {
        match self {
            Waiting::Journal(post) => *post,
            Waiting::Frames(frames) => frames.post(),
        }
    }
}
