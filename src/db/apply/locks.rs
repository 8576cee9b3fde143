//! SQLite's locks as the daemon takes them through its own mount (os_unix.c for the
//! database file, wal.c for `-shm`). Waiting is bounded everywhere.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::super::{LockTo, OwnFile};
use crate::sqlite::wal_index::lock;

/// Held by a writer that waits for the readers to go: no new ones come in.
pub(super) const PENDING: Range<u64> = 0x4000_0000..0x4000_0001;
/// Held by a writer from its first change in memory on.
pub(super) const RESERVED: Range<u64> = 0x4000_0001..0x4000_0002;
/// Held shared by readers, alone by a writer that changes the file.
pub(super) const SHARED: Range<u64> = 0x4000_0002..0x4000_0200;
/// Everything that a connection may hold on a database file.
const ALL: Range<u64> = 0x4000_0000..0x4000_0200;

/// Held alone while frames are appended.
pub(in super::super) const WAL_WRITE: Range<u64> = lock::WRITE..lock::WRITE + 1;
/// Held alone by a checkpoint.
pub(super) const WAL_CHECKPOINT: Range<u64> = lock::CHECKPOINT..lock::CHECKPOINT + 1;
/// Checkpoint, recovery, and every reader: alone for whoever makes the wal-index.
pub(super) const WAL_ALL_BUT_WRITE: Range<u64> = lock::CHECKPOINT..lock::READ + 5;
/// Held shared by every connection: while it is, `-shm` is not begun anew.
pub(super) const DMS: Range<u64> = lock::DMS..lock::DMS + 1;

/// The lock of a read mark.
pub(super) fn wal_read(number: u64) -> Range<u64> {
    lock::READ + number..lock::READ + number + 1
}

/// The locks of all read marks but the first, whose readers do not use the WAL.
pub(super) const WAL_READERS: Range<u64> = lock::READ + 1..lock::READ + 5;

/// Between two attempts at a lock: at first, at most.
const SOON: Duration = Duration::from_micros(100);
const LATE: Duration = Duration::from_millis(5);

/// Takes a lock, waiting for others until `deadline`; false if it was in vain.
pub(in super::super) fn lock_until(
    file: &dyn OwnFile,
    to: LockTo,
    bytes: Range<u64>,
    deadline: Instant,
) -> io::Result<bool> {
    let mut pause = SOON;
    while !file.try_lock(to, bytes.clone())? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LATE);
    }
    Ok(true)
}

/// Becomes a reader of a database file, as SQLite does: not past a waiting writer.
pub(super) fn share(file: &dyn OwnFile, deadline: Instant) -> io::Result<bool> {
    if !lock_until(file, LockTo::Shared, PENDING, deadline)? {
        return Ok(false);
    }
    let shared = lock_until(file, LockTo::Shared, SHARED, deadline);
    let freed = file.try_lock(LockTo::Free, PENDING);
    Ok(shared? && freed?)
}

/// Shuts everybody out of a database file, or leaves the locks as they were but for
/// being a reader.
pub(super) fn exclude(file: &dyn OwnFile, reader: bool, deadline: Instant) -> io::Result<bool> {
    if !lock_until(file, LockTo::Exclusive, PENDING, deadline)? {
        return Ok(false);
    }
    match lock_until(file, LockTo::Exclusive, SHARED, deadline) {
        Ok(true) => Ok(true),
        other => {
            file.try_lock(LockTo::Free, PENDING)?;
            if !reader {
                file.try_lock(LockTo::Free, SHARED)?;
            }
            other
        }
    }
}

/// Lets everybody in again.
pub(super) fn release(file: &dyn OwnFile) -> io::Result<()> {
    file.try_lock(LockTo::Free, ALL).map(drop)
}
