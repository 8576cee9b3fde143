//! What a database needs from above itself, as traits that the mount implements.
//! Must not know FUSE.

use std::io;
use std::ops::Range;

use super::FileKind;
use crate::words::DbName;

/// The first bytes of a wal-index: both copies of its header, the checkpoint
/// information (`walindex_hdr` of wal.c: 2 × 48 + 40 bytes).
pub const WAL_INDEX_HEADER: usize = 136;

/// The wal-index of a database as the applications see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalIndex {
    /// No application has the `-shm` file open: there is no wal-index, or only one
    /// on the heap of a connection in EXCLUSIVE mode.
    Unused,
    /// Its first bytes.
    Used(Box<[u8; WAL_INDEX_HEADER]>),
}

/// The daemon as one more client of its own mount. Never called by a thread that
/// the kernel waits for in a LOOKUP, OPEN, CREATE or UNLINK; calls may come from a
/// pool thread that is answering a WRITE, FSYNC or SETATTR of the database or WAL.
pub trait OwnMount: Send + Sync {
    /// The wal-index as the processes that map it see it: from the backing file
    /// where it is in passthrough, else by pread through the mount (never mapped).
    fn wal_index(&self, db: &DbName) -> io::Result<WalIndex>;

    /// The wal-index, if that takes no request of the mount: so a thread that serves
    /// requests may call it.
    fn wal_index_at_once(&self, db: &DbName) -> Option<WalIndex> {
        let _ = db;
        None
    }

    /// Whether a process holds the WAL's write lock (byte 120 of `-shm`, asked by
    /// F_OFD_GETLK through the mount). False where no application has `-shm` open.
    fn wal_write_locked(&self, db: &DbName) -> io::Result<bool>;

    /// Whether writes to a WAL pass the daemon by.
    fn passes_wal(&self) -> bool {
        false
    }

    /// Says that the daemon changed `len` bytes at `offset` of the database file
    /// (`len` 0: to its end) or its size; the kernel drops what it has cached. Only
    /// queues: a notifier thread that holds no lock does it.
    fn changed(&self, db: &DbName, offset: u64, len: u64);

    /// Opens one of a database's files through the mount, as an application would;
    /// `create`: makes it if it is missing.
    fn open(&self, db: &DbName, kind: FileKind, create: bool) -> io::Result<Box<dyn OwnFile>> {
        let _ = (db, kind, create);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Unlinks one of a database's files through the mount.
    fn unlink(&self, db: &DbName, kind: FileKind) -> io::Result<()> {
        let _ = (db, kind);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits until the kernel was told of every earlier [`OwnMount::changed`]. Not with
    /// a lock that a request's handler takes.
    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    /// Waits until the kernel knows that the database file has at least `len` bytes. It
    /// asks for itself when somebody reads beyond the size that it knows, but drops the
    /// answer if a change overtakes it (fuse_change_attributes) and then reads nothing
    /// there, which SQLite takes for an empty page. Not with a lock that a request's
    /// handler takes.
    fn grown(&self, db: &DbName, len: u64) -> io::Result<()> {
        let _ = (db, len);
        Ok(())
    }
}

/// What a lock on a range of bytes is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockTo {
    /// Held together with other readers.
    Shared,
    /// Held alone.
    Exclusive,
    /// Not held.
    Free,
}

/// A file of the mount that the daemon has open as one more client. Its locks exclude
/// other open files and go when it is dropped. Not to be used with a lock that a
/// request's handler takes.
pub trait OwnFile: Send + Sync {
    /// Reads up to `len` bytes at `offset`.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Writes all of it, in this order.
    fn write(&self, writes: Vec<(u64, Vec<u8>)>) -> io::Result<()>;

    /// Whether it has a name still.
    fn is_linked(&self) -> io::Result<bool>;

    /// Changes a lock without waiting; false if others are in the way.
    fn try_lock(&self, to: LockTo, bytes: Range<u64>) -> io::Result<bool>;
}
