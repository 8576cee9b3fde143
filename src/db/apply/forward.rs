//! Publishing what its writer did not live to publish (`waiting_wal`): the daemon is the
//! next writer of the WAL for a moment. Must not be called with a lock that a request's
//! handler takes, but for the one on capturing.

use std::time::Instant;

use super::super::{Captured, Database, DbError, FileKind, LockTo};
use super::locks::{self, DMS, WAL_WRITE};
use super::writer::Writer;
use crate::sqlite::wal::WalHeader;
use crate::sqlite::wal_index::{self, Unusable, WalIndex};

impl Database {
    /// Publishes what is ahead, once its writer is gone. The caller has locked capturing.
    pub(in super::super) fn roll_forward(&self) -> Result<Captured, DbError> {
        let Some(own) = self.shared.own() else { return Ok(Captured::Settled) };
        let database = self.own_open(&*own, FileKind::Database, false)?;
        let lock = || DbError::io("lock", self.path(FileKind::Shm));
        // A writer in EXCLUSIVE mode holds the database file alone, and no lock of the
        // wal-index. Nor does anybody delete the WAL from here on.
        if !locks::share(&*database, Instant::now()).map_err(lock())? {
            return Ok(Captured::Again);
        }
        let index = own.wal_index(&self.name).map_err(DbError::io("read", self.path(FileKind::Shm)))?;
        if index == super::super::WalIndex::Unused {
            return Ok(Captured::Settled);
        }
        let shm = self.own_open(&*own, FileKind::Shm, false)?;
        // As a connection: so that nobody begins the wal-index anew.
        if !shm.try_lock(LockTo::Shared, DMS).map_err(lock())?
            || !shm.try_lock(LockTo::Exclusive, WAL_WRITE).map_err(lock())?
        {
            return Ok(Captured::Again);
        }
        let read = || DbError::io("read", self.path(FileKind::Shm));
        let found = shm.read(0, wal_index::LEN).map_err(read())?;
        let Some((file, header)) = self.wal_now()? else { return Ok(Captured::Settled) };
        let index = match WalIndex::parse(&found) {
            Ok(index) => index,
            // That of an empty WAL states none.
            Err(Unusable::PageSize) => super::writer::empty(header.page_size),
            // One that cannot be believed the next reader makes anew, from the frames.
            Err(_) => return Ok(Captured::Settled),
        };
        if index.frames > 0 && index.salt != header.salt {
            return Ok(Captured::Settled);
        }
        let wal = self.own_open(&*own, FileKind::Wal, false)?;
        let held = super::hold::frames(&file, &header, index.frames).map_err(read())?;
        let write = || DbError::io("write", self.path(FileKind::Shm));
        let mut writer = Writer::take_over((wal, shm), index, Some(header), &held).map_err(write())?;
        self.publish_ahead(&mut writer)?;
        Ok(Captured::Settled)
    }

    /// Publishes what is ahead of what the writer of the WAL has published.
    pub(super) fn publish_ahead(&self, writer: &mut Writer) -> Result<(), DbError> {
        if self.frames_are_plain() {
            return Ok(());
        }
        let Some(ahead) = self.ahead_of((writer.frames(), writer.index.frame_sum))? else {
            return self.give_up_ahead();
        };
        self.pass("forward.found")?;
        let write = || DbError::io("write", self.path(FileKind::Shm));
        writer.adopt(ahead.header, &ahead.pages, ahead.headers).map_err(write())?;
        self.pass("forward.adopted")?;
        writer.publish(ahead.size).map_err(write())?;
        self.is_published();
        tracing::info!(
            db = %self.name, frames = ahead.pages.len(),
            "published a transaction that the archive has and whose writer died before it could"
        );
        Ok(())
    }

    fn wal_now(&self) -> Result<Option<(std::sync::Arc<std::fs::File>, WalHeader)>, DbError> {
        let mut state = self.lock();
        let Some(file) = self.wal_file(&mut state)? else { return Ok(None) };
        let header = WalHeader::read(&*file).map_err(DbError::io("read", self.path(FileKind::Wal)))?;
        Ok(header.map(|header| (file, header)))
    }
}
