//! `<db>-lock`: who opens it for writing has the halt lock of the database, until it is
//! closed. LiteFS's client libraries then lock a byte of it, which stays in the kernel.
//! Must not know where the lock comes from.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fuser::{Errno, FopenFlags};

use super::errno;
use super::handles::Handle;
use super::inodes::What;
use super::opening::Opened;
use super::permissions::{Caller, WRITE};
use super::tree::Tree;
use crate::db::{Database, DbError, FileKind};

/// The halt lock of one database; given back when dropped, which returns at once.
pub type HaltGuard = Box<dyn Send + Sync>;

/// Who knows how to get halt locks.
pub trait Halts: Send + Sync {
    /// Waits until this node has the lock of a database and everything of it; for a
    /// bounded time. Called on a thread that no other request needs.
    fn acquire(&self, db: &Arc<Database>) -> Result<HaltGuard, DbError>;
}

impl Tree {
    /// Whether OPEN of this inode is that of a lock, and takes long.
    pub(super) fn opens_lock(&self, ino: u64, flags: i32) -> bool {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        write && self.inodes.get(ino).is_some_and(|node| matches!(node.what, What::Lock(_)))
    }

    /// OPEN of `<db>-lock` for writing. May take long.
    pub(super) fn open_lock(&self, caller: Caller, ino: u64) -> Result<Opened, Errno> {
        let node = self.node(ino)?;
        let What::Lock(name) = &node.what else { return Err(Errno::EIO) };
        let db = self.store.database(name).ok_or(Errno::ENOENT)?;
        let file = std::fs::metadata(db.path(FileKind::Database)).map_err(|error| errno::of_io(&error))?;
        if self.check && !caller.may(WRITE, &file) {
            return Err(Errno::EACCES);
        }
        if self.unseen_wal(&db) {
            return Err(errno::report(DbError::Busy {
                db: name.clone(),
                what: "applications have its WAL open since this node was the primary, so that their commits would \
                       not be seen; close those connections, then take the halt lock"
                    .to_owned(),
            }));
        }
        let halts = self.halts.get().ok_or(Errno::EACCES)?;
        let halt = halts.acquire(&db).map_err(errno::report)?;
        // Not while it waited: a mount that ends does not wait for the lock.
        let _open = self.may_open(caller)?;
        let handle = Handle {
            node,
            file: None,
            text: None,
            write: true,
            own: false,
            created: false,
            unseen: false,
            wrote: AtomicBool::new(false),
            _halt: Some(halt),
        };
        Ok(Opened {
            fh: self.handles.insert(handle),
            flags: FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            backing: None,
        })
    }

    /// Whether an application has a WAL open whose writes need not come to the daemon.
    fn unseen_wal(&self, db: &Database) -> bool {
        let node = self.inodes.at(&format!("{}{}", db.name(), FileKind::Wal.suffix()));
        node.is_some_and(|node| node.opens().unseen > 0)
    }

    /// Whether commits to some databases may have to wait for an answer from elsewhere.
    pub(super) fn commits_may_wait(&self) -> bool {
        self.store.archive_first() || !self.store.is_writable()
    }

    /// Whether an application's commits to what it opens now may have to be seen one by
    /// one: on a replica it may get the halt lock.
    pub(super) fn on_replica(&self, own: bool) -> bool {
        !own && !self.store.is_writable()
    }
}
