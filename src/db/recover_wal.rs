//! The WAL at the opening of a database: what it has of the captured transactions is
//! copied into the database file, what it has beyond them is captured. No application
//! is there yet. Must not touch the rollback journal.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::database::{State, old_sum, read_at_most};
use super::log::WalEnd;
use super::recover::remove_if_there;
use super::wal::WalTrack;
use super::{Database, DbError, FileKind};
use crate::sqlite::wal::{Authority, Cursor, WalHeader};
use crate::words::{PageSum, Pgno};

/// A WAL that was left, with what is known of it.
pub(super) struct LeftWal {
    file: Arc<File>,
    header: WalHeader,
    /// How many of its frames were captured.
    pub known: u32,
    /// After them; `None` if the last of them was lost with the power, and what
    /// follows it too.
    start: Option<Cursor>,
}

impl Database {
    /// The WAL, if it has something to say. `ends` are the ends of all transactions
    /// that the tail has from WALs, in order.
    pub(super) fn left_wal(&self, ends: &[WalEnd]) -> Result<Option<LeftWal>, DbError> {
        let path = self.path(FileKind::Wal);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DbError::io("open", path)(source)),
        };
        let header = WalHeader::read(&*file).map_err(DbError::io("read", &path))?;
        let Some(header) = header else { return Ok(None) };
        let last = ends.last().filter(|end| end.salt == header.salt);
        if last.is_none() && ends.iter().any(|end| end.salt == header.salt) {
            // An earlier generation, since the header of the last one was lost with the
            // power: the tail has all of it.
            return Ok(None);
        }
        let known = last.map_or(0, |end| end.frame);
        let start = header.after(&*file, known).map_err(DbError::io("read", path))?;
        Ok(Some(LeftWal { file, header, known, start }))
    }

    /// Captures what the WAL has beyond the position, and copies it into the database
    /// file.
    pub(super) fn recover_wal(&self, state: &mut State, wal: LeftWal) -> Result<(), DbError> {
        let Some(start) = wal.start else { return Ok(()) };
        self.restate(state, wal.header.page_size)?;
        state.wal = Some(WalTrack::new(wal.header, start, state.pages));
        self.capture_new(state, &wal.file, &wal.header, Authority::Chain)?;
        let frames = state.wal.take().map_or(0, |track| track.end.frames);
        if frames > wal.known {
            self.copy_frames(state, &wal, frames)?;
        }
        Ok(())
    }

    /// The checkpoint: the newest content of every page in the first `frames` frames.
    /// Only what was captured: a frame may be lost with the power, its page then came
    /// from the tail.
    pub(super) fn copy_frames(&self, state: &mut State, wal: &LeftWal, frames: u32) -> Result<(), DbError> {
        let path = self.path(FileKind::Database);
        if frames == 0 || state.pages == 0 {
            return Ok(());
        }
        let size = wal.header.page_size;
        let database = self.database_file(state)?;
        let mut page = vec![0; size.len()];
        let offsets = self.frame_offsets(&wal.file, &wal.header, frames)?;
        let mut offsets: Vec<(u32, u64)> = offsets.into_iter().collect();
        offsets.sort_unstable();
        for (pgno, offset) in offsets {
            let Some(pgno) = Pgno::new(pgno).filter(|pgno| pgno.get() <= state.pages) else { continue };
            let read = read_at_most(&wal.file, &mut page, offset);
            let read = read.map_err(DbError::io("read", self.path(FileKind::Wal)))?;
            let stated = old_sum(&state.sums, pgno, || self.paths.sums())?;
            if read == page.len() && stated == Some(PageSum::of(pgno, &page)) {
                database.write_all_at(&page, size.offset_of(pgno)).map_err(DbError::io("write", &path))?;
            }
        }
        let len = u64::from(state.pages) * u64::from(size.get());
        database.set_len(len).map_err(DbError::io("truncate", &path))?;
        database.sync_data().map_err(DbError::io("sync", &path))?;
        self.shared.faults.pass("recover.checkpointed").map_err(DbError::io("write", path))
    }

    pub(super) fn remove_wal(&self) -> Result<(), DbError> {
        for kind in [FileKind::Wal, FileKind::Shm] {
            remove_if_there(&self.path(kind)).map_err(DbError::io("remove", self.path(kind)))?;
        }
        Ok(())
    }
}
