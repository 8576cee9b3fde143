//! Requests that commit, where a commit counts only once the archive has it, or under the
//! halt lock the primary: the reply is parked, and no thread waits with it. Must not know
//! what a commit is: the database says.
//!
//! While a request waits the kernel holds the inode that it is about: of an fsync the
//! database file, of a truncate or write the journal or WAL. Readers do not need it, and
//! other databases are not touched. An unlink holds the directory, too, for every name in
//! it that the kernel does not know; so what can wait at an earlier request does: the fsync
//! of the database file, or with synchronous=OFF the close of the journal.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::Errno;
use parking_lot::Mutex;

use super::errno;
use super::handles::Handle;
use super::inodes::What;
use super::names;
use super::permissions::Caller;
use super::pool::Pool;
use super::tree::Tree;
use crate::db::{Database, DbError, Done, FileKind, Verdict};

/// Calls `then` on the pool once what `submit` hands over is in the archive and counts, or
/// at once, on this thread, if there is nothing to hand over.
pub(super) fn commit(
    pool: &Pool,
    db: &Arc<Database>,
    submit: impl FnOnce(&Database, Done) -> Result<bool, DbError>,
    then: impl FnOnce(Result<(), Errno>) + Send + 'static,
) {
    let slot = Arc::new(Mutex::new(Some(then)));
    let done = {
        let (slot, pool, db) = (slot.clone(), pool.clone(), db.clone());
        Box::new(move |verdict: Verdict| {
            pool.run(move || {
                let concluded = db.conclude(verdict).map_err(errno::report);
                if let Some(then) = slot.lock().take() {
                    then(concluded);
                }
            });
        })
    };
    let submitted = match submit(db, done) {
        Ok(true) => return,
        Ok(false) => Ok(()),
        Err(error) => Err(errno::report(error)),
    };
    let then = slot.lock().take();
    if let Some(then) = then {
        then(submitted);
    }
}

impl Tree {
    /// The database whose journal an unlink would end.
    pub(super) fn unlinks_journal(&self, parent: u64, name: &std::ffi::OsStr) -> Option<Arc<Database>> {
        if !self.commits_may_wait() {
            return None;
        }
        let parent = self.inodes.get(parent)?;
        match names::parse(&names::join(&parent.path, name.to_str()?)) {
            Some(names::Name::File(db, FileKind::Journal)) => {
                self.store.database(&db).filter(|db| db.archive_first())
            }
            _ => None,
        }
    }

    /// The database whose journal a change of size would end.
    pub(super) fn cuts_journal(&self, ino: u64, size: Option<u64>) -> Option<Arc<Database>> {
        let node = self.inodes.get(ino)?;
        match &node.what {
            What::File(db, FileKind::Journal) if size == Some(0) && !node.gone() => {
                db.archive_first().then(|| db.clone())
            }
            _ => None,
        }
    }

    /// The database whose commit an fsync completes: its file, by the thread that wrote
    /// to it last. Somebody else's fsync may come in the middle of a transaction.
    pub(super) fn syncs_commit(&self, caller: Caller, handle: &Handle) -> Option<Arc<Database>> {
        match &handle.node.what {
            What::File(db, FileKind::Database) if db.archive_first() && !handle.own => {
                // 0: a thread that this one's namespace does not know.
                let wrote = handle.node.writer.load(Ordering::Acquire);
                (caller.pid != 0 && caller.pid == wrote).then(|| db.clone())
            }
            _ => None,
        }
    }

    /// The database whose journal the thread closes that wrote to the database last. Not if
    /// that thread is dying: then the kernel closes, and the journal stays hot.
    pub(super) fn closes_journal(&self, caller: Caller, handle: &Handle) -> Option<Arc<Database>> {
        let node = &handle.node;
        match &node.what {
            What::File(db, FileKind::Journal) if db.archive_first() && handle.write && !node.gone() => {
                let path = node.path.strip_suffix(FileKind::Journal.suffix())?;
                let wrote = self.inodes.at(path)?.writer.load(Ordering::Acquire);
                (caller.pid != 0 && caller.pid == wrote && !is_dying(caller.pid)).then(|| db.clone())
            }
            _ => None,
        }
    }

    /// The database to whose WAL an application writes.
    pub(super) fn writes_frames(&self, handle: &Handle) -> Option<Arc<Database>> {
        match &handle.node.what {
            What::File(db, FileKind::Wal) if db.archive_first() && !handle.own && !handle.node.gone() => {
                Some(db.clone())
            }
            _ => None,
        }
    }

    /// The database to whose journal a write may be the end.
    pub(super) fn writes_journal(&self, handle: &Handle, offset: u64) -> Option<Arc<Database>> {
        match &handle.node.what {
            What::File(db, FileKind::Journal) if offset == 0 && db.archive_first() && !handle.node.gone() => {
                Some(db.clone())
            }
            _ => None,
        }
    }
}

/// Whether a thread is on its way out, for what is known: PF_EXITING among the flags in
/// /proc/<thread>/stat (proc(5), field 9), set before the kernel closes its files.
fn is_dying(thread: u32) -> bool {
    const PF_EXITING: u32 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{thread}/stat")) else { return true };
    // The second field is a name that may hold spaces and parentheses.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_none_or(|flags| flags & PF_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_lives_is_not_dying_and_one_that_is_gone_counts_as_if() {
        let this = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert!(!is_dying(this));
        assert!(is_dying(u32::MAX));
    }
}
