//! Keeping applications from writing through a WAL that the kernel passes to its file:
//! the daemon holds its write lock. They find the database locked; readers and checkpoints
//! go on.

use super::super::{Database, DbError, FileKind, LockTo, OwnFile, WalIndex};
use super::locks::WAL_WRITE;

/// The write lock of a WAL; let go when dropped.
pub struct Brake {
    shm: Box<dyn OwnFile>,
}

impl Brake {
    /// Whether the file is still there that was locked.
    pub fn holds(&self) -> bool {
        self.shm.is_linked().unwrap_or(false)
    }
}

impl Database {
    /// Locks the WAL, if applications have one that passes the daemon by and none is
    /// writing now.
    pub fn brake(&self) -> Result<Option<Brake>, DbError> {
        let own = self.shared.own().filter(|own| own.passes_wal() && !self.archive_first());
        let Some(own) = own else { return Ok(None) };
        let index = own.wal_index(&self.name).map_err(DbError::io("read", self.path(FileKind::Shm)))?;
        if index == WalIndex::Unused {
            return Ok(None);
        }
        let shm = self.own_open(&*own, FileKind::Shm, false)?;
        let locked = shm.try_lock(LockTo::Exclusive, WAL_WRITE);
        let locked = locked.map_err(DbError::io("lock", self.path(FileKind::Shm)))?;
        Ok(locked.then_some(Brake { shm }))
    }
}
