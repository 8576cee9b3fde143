//! Applying through the WAL: frames, then the log, then the wal-index. Readers never
//! wait, and see all of it or nothing.

use std::os::unix::fs::FileExt;

use super::super::log::WalEnd;
use super::super::wal::WalTrack;
use super::super::{Batch, Database, DbError, FileKind, Kind};
use super::checkpoint::Copying;
use super::hold::Hold;
use super::{Set, io_in};
use crate::words::Pgno;

/// A checkpoint is due every so many frames, as in SQLite. A WAL that has fewer is let
/// grow: to ask whether it could begin anew would cost a journey through the mount for
/// each change set.
const CHECKPOINT_EVERY: u32 = 1000;

impl Database {
    pub(super) fn apply_frames(&self, set: &Set, hold: &mut Hold) -> Result<(), DbError> {
        if self.pos() != set.from {
            self.build_applied(&self.lock(), set, None)?;
        }
        self.put_mark()?;
        let writer = &mut hold.writer;
        if writer.frames() >= CHECKPOINT_EVERY {
            writer.restart().map_err(io_in(self))?;
        }
        let (pages, commit) = (self.pages_of(set), set.goal.pages);
        let before = writer.end();
        let read = |pgno: Pgno, page: &mut [u8]| self.read_for_frame(set, pgno, page);
        writer.append(&pages, commit, read)?;
        let (header, end) = (writer.generation(), writer.end());
        let entered = self.pass("apply.frames").and_then(|()| {
            let mut state = self.lock();
            let wal = WalEnd { salt: header.salt, frame: end.frames, sum: end.sum };
            let (change, afresh) = self.build_applied(&state, set, Some(wal))?;
            let mut batch = Batch::new();
            change.encode(Kind::Change, &mut batch);
            let place = self.shared.log.append(&batch)?.first().copied().unwrap_or_default();
            if state.wal.as_ref().is_none_or(|track| track.header.salt != header.salt) {
                state.wal = Some(WalTrack::new(header, header.start(), state.pages));
            }
            self.enter_applied(&mut state, set, (&change, place, afresh));
            if let Some(track) = &mut state.wal {
                track.applied(end, commit, &pages);
            }
            Ok(())
        });
        if let Err(error) = entered {
            writer.take_back(before);
            return Err(error);
        }
        self.pass("apply.logged")?;
        writer.publish(commit).map_err(io_in(self))?;
        self.pass("apply.published")?;
        self.keep_wal_small(hold)
    }

    /// The pages of the frames: a transaction has at least one.
    fn pages_of(&self, set: &Set) -> Vec<Pgno> {
        let lock_page = set.goal.page_size.lock_page();
        let mut pages: Vec<Pgno> =
            set.spool.pages(set.goal.pages).filter(|pgno| *pgno != lock_page).collect();
        if pages.is_empty() {
            pages.push(Pgno::FIRST);
        }
        pages
    }

    fn read_for_frame(&self, set: &Set, pgno: Pgno, page: &mut [u8]) -> Result<(), ApplyError> {
        if set.spool.read(pgno, page)? {
            return Ok(());
        }
        // The first page, of a change set that has no page.
        let mut state = self.lock();
        let newest = match (self.wal_file(&mut state)?, &state.wal) {
            (Some(file), Some(track)) => {
                let offsets = self.frame_offsets(&file, &track.header, track.end.frames)?;
                offsets.get(&pgno.get()).map(|offset| file.read_exact_at(page, *offset))
            }
            _ => None,
        };
        match newest {
            Some(read) => Ok(read?),
            None => {
                let file = self.database_file(&mut state)?;
                Ok(Self::read_page(&file, set.goal.page_size, pgno, page)?)
            }
        }
    }

    /// Copies frames into the database file from time to time.
    fn keep_wal_small(&self, hold: &mut Hold) -> Result<(), DbError> {
        let writer = &hold.writer;
        if writer.frames() < CHECKPOINT_EVERY {
            return Ok(());
        }
        let backfilled = writer.marks().map_err(io_in(self))?.backfilled;
        if writer.frames().saturating_sub(backfilled) < CHECKPOINT_EVERY {
            return Ok(());
        }
        let copied =
            writer.checkpoint(|copying| self.copy_applied(hold, &copying).map_err(ApplyError::Database));
        Ok(copied?)
    }

    /// Copies frames into the database file, durably, and tells the kernel.
    pub(super) fn copy_applied(&self, hold: &Hold, copying: &Copying) -> Result<(), DbError> {
        let header = hold.writer.generation();
        let (database, wal) = {
            let mut state = self.lock();
            (self.database_file(&mut state)?, self.wal_file(&mut state)?)
        };
        let (io, Some(wal)) = (|| io_in(self), wal) else { return Ok(()) };
        // Before the frames may go, what explains them must be durable.
        self.shared.log.sync()?;
        wal.sync_data().map_err(io())?;
        self.pass("apply.checkpoint")?;
        let size = header.page_size;
        let mut page = vec![0; size.len()];
        let mut told = super::exclusive::Told::new(self);
        for (pgno, frame) in &copying.frames {
            let at = header.frame_offset(*frame) + crate::sqlite::wal::FRAME_HEADER_LEN as u64;
            wal.read_exact_at(&mut page, at).map_err(io())?;
            database.write_all_at(&page, size.offset_of(*pgno)).map_err(io())?;
            told.page(size.offset_of(*pgno), size.len() as u64);
        }
        if let Some(pages) = copying.pages {
            let len = u64::from(pages) * u64::from(size.get());
            if database.metadata().map_err(io())?.len() > len {
                database.set_len(len).map_err(io())?;
                told.page(len, 0);
            }
        }
        told.length(&database)?;
        told.all()?;
        database.sync_data().map_err(DbError::io("sync", self.path(FileKind::Database)))
    }
}

/// What stops the writer: its own files, or the database.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Database(#[from] DbError),
}

impl From<ApplyError> for DbError {
    fn from(error: ApplyError) -> DbError {
        match error {
            ApplyError::Io(source) => DbError::Io { attempt: "apply to", path: "the wal".into(), source },
            ApplyError::Database(error) => error,
        }
    }
}
