//! Copying frames into the database file, as SQLite's PASSIVE checkpoint does
//! (walCheckpoint): as far as no reader needs the file as it is. Must not wait for
//! readers, and must not know where the file is.

use std::collections::BTreeMap;
use std::io;

use super::super::LockTo;
use super::locks::{WAL_CHECKPOINT, wal_read};
use super::writer::{UNUSED, Writer};
use crate::sqlite::wal_index::at;
use crate::words::Pgno;

/// What a checkpoint copies.
#[derive(Debug)]
pub(super) struct Copying {
    /// Each page with the frame that holds its newest content.
    pub frames: BTreeMap<Pgno, u32>,
    /// The database's size, where every frame is copied.
    pub pages: Option<u32>,
}

impl Writer {
    /// Copies what can be copied by `copy`, which makes it durable and visible.
    pub fn checkpoint<E: From<io::Error>>(
        &self,
        copy: impl FnOnce(Copying) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.index.frames == 0 || !self.shm.try_lock(LockTo::Exclusive, WAL_CHECKPOINT)? {
            return Ok(());
        }
        let done = self.checkpoint_locked(copy);
        self.shm.try_lock(LockTo::Free, WAL_CHECKPOINT)?;
        done
    }

    fn checkpoint_locked<E: From<io::Error>>(
        &self,
        copy: impl FnOnce(Copying) -> Result<(), E>,
    ) -> Result<(), E> {
        let seen = self.marks()?;
        let safe = self.safe_frame(seen.read_marks)?;
        // The readers of this lock take the file for the whole database.
        if seen.backfilled >= safe || !self.shm.try_lock(LockTo::Exclusive, wal_read(0))? {
            return Ok(());
        }
        let copied = self.copy_up_to(seen.backfilled, safe, copy);
        self.shm.try_lock(LockTo::Free, wal_read(0))?;
        copied
    }

    fn copy_up_to<E: From<io::Error>>(
        &self,
        from: u32,
        safe: u32,
        copy: impl FnOnce(Copying) -> Result<(), E>,
    ) -> Result<(), E> {
        self.shm.write(vec![(at::BACKFILL_ATTEMPTED, safe.to_ne_bytes().to_vec())])?;
        let size = self.pages();
        let frames = (from + 1..=safe)
            .filter_map(|frame| self.tables.page(frame).map(|pgno| (pgno, frame)))
            .filter(|(pgno, _)| pgno.get() <= size)
            .collect();
        copy(Copying { frames, pages: (safe == self.frames()).then_some(size) })?;
        self.shm.write(vec![(at::BACKFILLED, safe.to_ne_bytes().to_vec())])?;
        Ok(())
    }

    /// Up to which frame no reader needs the database file as it is.
    fn safe_frame(&self, marks: [u32; 5]) -> io::Result<u32> {
        let mut safe = self.frames();
        for (number, mark) in (0..).zip(marks).skip(1) {
            if mark >= safe {
                continue;
            }
            if self.shm.try_lock(LockTo::Exclusive, wal_read(number))? {
                // Nobody uses it: so that it no longer counts.
                let value: u32 = if number == 1 { safe } else { UNUSED };
                let written =
                    self.shm.write(vec![(at::READ_MARKS + 4 * number, value.to_ne_bytes().to_vec())]);
                self.shm.try_lock(LockTo::Free, wal_read(number))?;
                written?;
            } else {
                safe = mark;
            }
        }
        Ok(safe)
    }
}
