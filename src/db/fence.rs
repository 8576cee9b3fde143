//! Applications that outlive the mount: they still have WAL and wal-index open through
//! passthrough. A wal-index of an unknown version makes their next transaction fail
//! (wal.c: SQLITE_CANTOPEN) instead of vanishing. A connection in EXCLUSIVE mode has its
//! wal-index on its heap and is out of reach. Must not unmount.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::apply::locks::{WAL_WRITE, lock_until};
use super::{Database, DbError, FileKind, LockTo, OwnFile, WalIndex};
use crate::sqlite::wal::checksum;

/// Both copies of the header of a wal-index that no SQLite uses.
fn unusable_header() -> Vec<u8> {
    const UNKNOWN_VERSION: u32 = 1;
    let mut copy = [0; 48];
    copy[0..4].copy_from_slice(&UNKNOWN_VERSION.to_ne_bytes());
    copy[12] = 1;
    let sum = checksum(cfg!(target_endian = "big"), &copy[..40], [0, 0]);
    copy[40..44].copy_from_slice(&sum[0].to_ne_bytes());
    copy[44..48].copy_from_slice(&sum[1].to_ne_bytes());
    [copy, copy].concat()
}

impl Database {
    /// Keeps those who survived an earlier daemon from writing.
    pub(super) fn fence(&self) -> Result<(), DbError> {
        let path = self.path(FileKind::Shm);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(DbError::io("open", path)(source)),
        };
        file.write_all_at(&unusable_header(), 0).map_err(DbError::io("write", path))
    }

    /// Captures what applications committed, a last time before the mount is taken from
    /// them, and keeps them from committing more. The commit that is under way is waited
    /// for until `deadline`; a transaction that is open longer can still commit to the
    /// local files, where the next start finds it. To be kept until the mount is gone.
    pub(crate) fn drive_out(&self, deadline: Instant) -> Option<Box<dyn OwnFile>> {
        match self.try_drive_out(deadline) {
            Ok(locked) => locked,
            Err(error) => {
                tracing::error!(
                    db = %self.name(), %error,
                    "applications that stay could not be kept from writing: end them; what they commit is captured \
                     at the next start"
                );
                None
            }
        }
    }

    fn try_drive_out(&self, deadline: Instant) -> Result<Option<Box<dyn OwnFile>>, DbError> {
        let io = |attempt| DbError::io(attempt, self.path(FileKind::Shm));
        let Some(own) = self.shared.own() else { return Ok(None) };
        if own.wal_index(self.name()).map_err(io("read"))? == WalIndex::Unused {
            self.capture()?;
            self.seal();
            return Ok(None);
        }
        let shm = own.open(self.name(), FileKind::Shm, false).map_err(io("open"))?;
        let alone = self.held.load(Ordering::Acquire)
            || lock_until(&*shm, LockTo::Exclusive, WAL_WRITE, deadline).map_err(io("lock"))?;
        self.capture_wal(true)?;
        self.seal();
        shm.write(vec![(0, unusable_header())]).map_err(io("write"))?;
        if !alone {
            tracing::warn!(
                db = %self.name(),
                "an application has a write transaction open: if it commits, it is captured at the next start"
            );
        }
        Ok(Some(shm))
    }

    /// Whatever is in the WAL beyond is for the next start to judge: until then whoever
    /// stays may overwrite it.
    fn seal(&self) {
        self.lock().wal_sealed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::wal_index::{self, Unusable};

    #[test]
    fn the_header_is_whole_and_of_no_version() {
        let mut bytes = unusable_header();
        bytes.resize(wal_index::LEN, 0);
        assert_eq!(wal_index::WalIndex::parse(&bytes), Err(Unusable::Version(1)));
    }
}
