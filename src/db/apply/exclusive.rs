//! Applying with the database alone: in the rollback modes, and where the journal mode
//! or the page size changes. Readers wait for as long as pages are written. Also a new
//! database, and a drop.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::change::Change;
use super::super::recover::remove_if_there;
use super::super::{Batch, Database, DbError, FileKind, Kind, LockTo, OwnFile, OwnMount, sync_dir};
use super::frames::ApplyError;
use super::hold::Hold;
use super::locks::{self, PENDING, RESERVED, SHARED};
use super::{Set, io_in};
use crate::sqlite::header::JournalMode;

/// More ranges than this are told as one.
const MANY: usize = 4096;

/// Which bytes of the database file the kernel must no longer believe.
pub(super) struct Told<'a> {
    database: &'a Database,
    ranges: Vec<(u64, u64)>,
    /// The file's length.
    len: u64,
}

impl<'a> Told<'a> {
    pub fn new(database: &'a Database) -> Told<'a> {
        Told { database, ranges: Vec::new(), len: 0 }
    }

    /// Notes `len` bytes at `offset`; 0: to the end.
    pub fn page(&mut self, offset: u64, len: u64) {
        match self.ranges.last_mut() {
            Some((from, before)) if len > 0 && *before > 0 && *from + *before == offset => *before += len,
            _ => self.ranges.push((offset, len)),
        }
    }

    /// Notes how long the file is now.
    pub fn length(&mut self, file: &File) -> Result<(), DbError> {
        self.len = file.metadata().map_err(io_in(self.database))?.len();
        Ok(())
    }

    /// Tells, and waits until the kernel knows.
    pub fn all(self) -> Result<(), DbError> {
        let Some(own) = self.database.shared.own() else { return Ok(()) };
        let name = self.database.name();
        if self.ranges.len() > MANY {
            own.changed(name, 0, 0);
        } else {
            self.ranges.iter().for_each(|(offset, len)| own.changed(name, *offset, *len));
        }
        own.settle()
            .and_then(|()| own.grown(name, self.len))
            .map_err(DbError::io("tell the kernel of", self.database.path(FileKind::Database)))
    }
}

type Alone = Option<Box<dyn OwnFile>>;

impl Database {
    pub(super) fn apply_alone(
        &self,
        set: &Set,
        hold: &mut Option<Hold>,
        own: Option<&dyn OwnMount>,
        deadline: Instant,
    ) -> Result<(), DbError> {
        if self.pos() != set.from {
            self.build_applied(&self.lock(), set, None)?;
        }
        let _hidden = (own.is_some() && !self.exists()).then(|| self.hide());
        let mut alone = match own {
            Some(own) if self.exists() => Some(self.shut_out(own, hold, deadline)?),
            _ => None,
        };
        let emptied = match own {
            Some(own) => self.empty_journals(own, hold, &mut alone),
            None => Ok(()),
        };
        let written = emptied.and_then(|()| self.write_alone(set, &mut alone));
        if written.is_ok() || alone.is_some() {
            // Also where nothing was written.
            self.let_in(own, hold, alone, deadline)?;
        }
        written
    }

    /// The database, locked so that nobody else is in it.
    fn shut_out(
        &self,
        own: &dyn OwnMount,
        hold: &mut Option<Hold>,
        deadline: Instant,
    ) -> Result<Box<dyn OwnFile>, DbError> {
        if let Some(file) = self.kept().take() {
            return Ok(file);
        }
        let reserved = self.reserved().take();
        let was_reserved = reserved.is_some();
        let file = match (hold.as_ref(), reserved) {
            (Some(_), _) => None,
            (None, Some(file)) => Some(file),
            (None, None) => Some(self.own_open(own, FileKind::Database, false)?),
        };
        let reader = file.is_none();
        let locked = match (&file, hold.as_ref()) {
            (Some(file), _) => locks::exclude(&**file, reader, deadline),
            (None, Some(hold)) => locks::exclude(&*hold.database, reader, deadline),
            (None, None) => Ok(false),
        };
        if !locked.map_err(DbError::io("lock", self.path(FileKind::Database)))? {
            if was_reserved {
                *self.reserved() = file;
            }
            return Err(self.busy("applications read it; change sets that need it alone wait for them"));
        }
        match (file, hold.take()) {
            (Some(file), _) => Ok(file),
            (None, Some(held)) => {
                let copied = held
                    .writer
                    .checkpoint(|copying| self.copy_applied(&held, &copying).map_err(ApplyError::Database));
                if let Err(error) = copied {
                    locks::share(&*held.database, deadline).map_err(io_in(self))?;
                    *hold = Some(held);
                    return Err(error.into());
                }
                Ok(held.database)
            }
            (None, None) => Err(self.busy("its lock is lost")),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Alone> {
        self.alone.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Nothing beside the database file counts any more: frames are copied into it, and
    /// a transaction that its writer left unfinished is rolled back.
    fn empty_journals(
        &self,
        own: &dyn OwnMount,
        hold: &Option<Hold>,
        alone: &mut Alone,
    ) -> Result<(), DbError> {
        if alone.is_none() || hold.is_some() {
            return Ok(());
        }
        for kind in [FileKind::Shm, FileKind::Wal] {
            if self.path(kind).exists() {
                own.unlink(&self.name, kind).map_err(DbError::io("remove", self.path(kind)))?;
            }
        }
        if self.has_file(FileKind::Journal) {
            let hot = {
                let mut state = self.lock();
                let hot = self.roll_back(&mut state)?;
                (state.nonce, state.prepared) = (None, None);
                state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))?;
                hot
            };
            if hot {
                let mut told = Told::new(self);
                told.page(0, 0);
                told.all()?;
                own.unlink(&self.name, FileKind::Journal)
                    .map_err(DbError::io("remove", self.path(FileKind::Journal)))?;
            }
        }
        Ok(())
    }

    /// Writes the pages, explained by the log beforehand. Once the first is written,
    /// nobody may read until all of them are: the locks then outlive a failure.
    fn write_alone(&self, set: &Set, alone: &mut Alone) -> Result<(), DbError> {
        self.put_mark()?;
        self.remove_halt_mark()?;
        let (change, afresh, place) = {
            let state = self.lock();
            let (change, afresh) = self.build_applied(&state, set, None)?;
            let mut batch = Batch::new();
            change.encode(Kind::Prepared, &mut batch);
            let place = self.shared.log.append(&batch)?.first().copied().unwrap_or_default();
            (change, afresh, place)
        };
        self.shared.log.sync()?;
        self.pass("apply.prepared")?;
        let (file, new) = self.file_to_write()?;
        let mut told = Told::new(self);
        let written = self.write_pages(set, &file, &mut told).and_then(|()| {
            self.pass("apply.written")?;
            let mut batch = Batch::new();
            batch.commit(&self.name, change.meta.post);
            Ok(self.shared.log.append(&batch)?)
        });
        if let Err(error) = written {
            *self.kept() = alone.take();
            return Err(error);
        }
        {
            let mut state = self.lock();
            self.enter_applied(&mut state, set, (&change, place, afresh));
            state.exists = true;
            state.file = Some(file);
            state.wal = None;
        }
        if new {
            told = Told::new(self);
            told.page(0, 0);
        }
        told.all()?;
        self.pass("apply.told")
    }

    /// The database file; a new one nobody sees before it is complete.
    fn file_to_write(&self) -> Result<(Arc<File>, bool), DbError> {
        let mut state = self.lock();
        if state.exists {
            return Ok((self.database_file(&mut state)?, false));
        }
        let path = self.path(FileKind::Database);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o644).open(&path);
        Ok((Arc::new(file.map_err(DbError::io("create", path))?), true))
    }

    fn write_pages(&self, set: &Set, file: &File, told: &mut Told<'_>) -> Result<(), DbError> {
        let size = set.goal.page_size;
        let mut page = vec![0; size.len()];
        for pgno in set.spool.pages(set.goal.pages) {
            set.spool.read(pgno, &mut page).map_err(io_in(self))?;
            file.write_all_at(&page, size.offset_of(pgno)).map_err(io_in(self))?;
            told.page(size.offset_of(pgno), size.len() as u64);
        }
        let len = u64::from(set.goal.pages) * u64::from(size.get());
        let before = file.metadata().map_err(io_in(self))?.len();
        if before != len {
            file.set_len(len).map_err(io_in(self))?;
            told.page(len.min(before), 0);
        }
        told.length(file)
    }

    /// Lets applications in again, as readers.
    fn let_in(
        &self,
        own: Option<&dyn OwnMount>,
        hold: &mut Option<Hold>,
        alone: Alone,
        deadline: Instant,
    ) -> Result<(), DbError> {
        let Some(own) = own else { return Ok(()) };
        let mode = self.file_header()?.map(|header| header.journal_mode());
        match (mode, alone) {
            (Some(JournalMode::Wal), Some(file)) => {
                file.try_lock(LockTo::Free, RESERVED).map_err(io_in(self))?;
                let held = self.hold_wal(own, file, deadline)?;
                held.become_reader().map_err(io_in(self))?;
                *hold = Some(held);
            }
            (Some(JournalMode::Wal), None) => *hold = self.take_hold(own, deadline)?,
            (_, Some(file)) => {
                self.held.store(false, Ordering::Release);
                if self.halt.reserving.load(Ordering::Acquire) {
                    // Applications still wait with their writes.
                    file.try_lock(LockTo::Exclusive, RESERVED).map_err(io_in(self))?;
                    file.try_lock(LockTo::Free, SHARED).map_err(io_in(self))?;
                    file.try_lock(LockTo::Free, PENDING).map_err(io_in(self))?;
                    *self.reserved() = Some(file);
                } else {
                    locks::release(&*file).map_err(io_in(self))?;
                }
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// The database goes. Applications that have it open keep what they have.
    pub(super) fn live_drop(&self, set: &Set, hold: &mut Option<Hold>) -> Result<(), DbError> {
        let mut state = self.lock();
        let (change, afresh): (Change, bool) = self.build_applied(&state, set, None)?;
        let mut batch = Batch::new();
        change.encode(Kind::Change, &mut batch);
        if state.exists {
            self.set_aside()?;
        }
        let appended = self.shared.log.append(&batch);
        if state.exists && appended.is_err() {
            self.put_back()?;
        }
        let place = appended?.first().copied().unwrap_or_default();
        self.shared.log.sync()?;
        self.enter_applied(&mut state, set, (&change, place, afresh));
        (state.exists, state.file, state.wal, state.wal_file, state.nonce, state.prepared) =
            (false, None, None, None, None, None);
        self.has_wal.store(false, Ordering::Release);
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))?;
        drop(state);
        self.pass("apply.dropped")?;
        *hold = None;
        *self.kept() = None;
        self.remove_dropped()?;
        for kind in FileKind::ALL {
            self.forget_handle(kind);
            remove_if_there(&self.path(kind)).map_err(DbError::io("remove", self.path(kind)))?;
        }
        self.held.store(false, Ordering::Release);
        if fs::metadata(self.paths.dir()).is_ok() {
            sync_dir(self.paths.dir()).map_err(DbError::io("sync", self.paths.dir()))?;
        }
        let mut told = Told::new(self);
        told.page(0, 0);
        told.all()
    }

    /// Writes back what a hot journal kept; true if there was one.
    fn roll_back(&self, state: &mut super::State) -> Result<bool, DbError> {
        let path = self.path(FileKind::Journal);
        let file = File::open(&path).map_err(DbError::io("open", &path))?;
        let len = file.metadata().map_err(DbError::io("read", &path))?.len();
        let head = crate::sqlite::journal::Header::read(&file).map_err(DbError::io("read", path))?;
        let Some(head) = head else { return Ok(false) };
        self.play_back(state, &file, len, head.page_size).map(|()| true)
    }
}
