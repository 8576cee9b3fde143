//! The daemon as the only writer of a database where this node may not write. In WAL
//! mode it holds the write lock, so that applications find the database locked, and is
//! a connection like theirs, so that WAL and wal-index stay. In the rollback modes
//! applications are refused their journal (`Database::open`), and here only the writer
//! that is at work is waited for.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::{Database, DbError, FileKind, LockTo, OwnFile, OwnMount};
use super::locks::{self, DMS, PENDING, RESERVED, SHARED, WAL_ALL_BUT_WRITE, WAL_WRITE};
use super::writer::Writer;
use crate::sqlite::header::{self, JournalMode};
use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, WalHeader};
use crate::sqlite::wal_index::{self, WalIndex};
use crate::sqlite::{ReadAt, header::Header};
use crate::words::{PageSize, Pgno, Pos};

/// The daemon's own connection to a database in WAL mode.
pub(in super::super) struct Hold {
    /// Shared: nobody can have the database alone, so nobody deletes the WAL.
    pub(super) database: Box<dyn OwnFile>,
    pub(super) writer: Writer,
}

/// Applications wait with their writes while this is there.
pub struct Paused {
    _reserved: Option<Box<dyn OwnFile>>,
}

impl Database {
    pub(in super::super) fn hold(&self) -> MutexGuard<'_, Option<Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps applications from writing, and captures what they wrote. The node took
    /// the right to write away before ([`super::super::Shared::set_writable`]). Does
    /// nothing without a mount.
    ///
    /// # Errors
    /// `Busy` if a writer goes on for longer than `patience`.
    pub fn hold_writers(&self, patience: Duration) -> Result<(), DbError> {
        let mut hold = self.hold();
        let deadline = Instant::now() + patience;
        match self.shared.own() {
            Some(own) if hold.is_none() && self.exists() => {
                *hold = self.take_hold(&*own, deadline)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes applications that want to write wait, by SQLite's own locks, and captures
    /// what they wrote, until what is returned is dropped (rollback modes) or
    /// [`Database::release_writers`] is called (WAL).
    ///
    /// # Errors
    /// `Busy` if a writer goes on for longer than `patience`.
    pub fn pause_writers(&self, patience: Duration) -> Result<Paused, DbError> {
        let mut hold = self.hold();
        let deadline = Instant::now() + patience;
        let Some(own) = self.shared.own().filter(|_| hold.is_none() && self.exists()) else {
            return Ok(Paused { _reserved: None });
        };
        if self.file_header()?.map(|header| header.journal_mode()) == Some(JournalMode::Wal) {
            *hold = self.take_hold(&*own, deadline)?;
            return Ok(Paused { _reserved: None });
        }
        let database = self.reserve(&*own, deadline)?;
        self.capture()?;
        Ok(Paused { _reserved: Some(database) })
    }

    /// The database with its lock for the one writer.
    fn reserve(&self, own: &dyn OwnMount, deadline: Instant) -> Result<Box<dyn OwnFile>, DbError> {
        let database = self.own_open(own, FileKind::Database, false)?;
        let free = locks::lock_until(&*database, LockTo::Exclusive, RESERVED, deadline);
        match free.map_err(DbError::io("lock", self.path(FileKind::Database)))? {
            true => Ok(database),
            false => Err(self.busy("an application is writing")),
        }
    }

    /// Makes applications that want to write wait as [`Database::pause_writers`] does, until
    /// [`Database::release_writers`], while change sets of another node are applied
    /// ([`Database::apply_live`]). The position that is captured then.
    ///
    /// # Errors
    /// `Busy` if a writer goes on for longer than `patience`.
    pub fn reserve_for_other(&self, patience: Duration) -> Result<Pos, DbError> {
        if self.shared.own().is_none() || !self.exists() {
            return Err(DbError::Missing { db: self.name.clone() });
        }
        let paused = self.pause_writers(patience)?;
        if paused._reserved.is_some() && self.is_hot()? {
            // Readers would take it for that of a writer who lives (pager.c, hasHotJournal).
            return Err(
                self.busy("a writer died in a transaction; open the database there, which rolls it back")
            );
        }
        *self.reserved() = paused._reserved;
        self.halt.reserving.store(true, Ordering::Release);
        Ok(self.pos())
    }

    /// Ends [`Database::reserve_for_other`] where applications may not go on: this node is
    /// not the primary any more.
    pub fn forget_reserve(&self) -> Result<(), DbError> {
        self.halt.reserving.store(false, Ordering::Release);
        match self.reserved().take() {
            Some(file) => {
                locks::release(&*file).map_err(DbError::io("unlock", self.path(FileKind::Database)))
            }
            None => Ok(()),
        }
    }

    /// Whether applying broke off between two positions: the log knows how it goes on, at
    /// the next start.
    pub fn is_between_positions(&self) -> bool {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn reserved(&self) -> MutexGuard<'_, Option<Box<dyn OwnFile>>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount has ended, and with it every lock.
    pub(crate) fn forget_hold(&self) {
        *self.hold() = None;
        *self.reserved() = None;
        self.halt.reserving.store(false, Ordering::Release);
        *self.alone.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.held.store(false, Ordering::Release);
    }

    /// Lets applications write. What was applied stands by itself from here on.
    pub fn release_writers(&self) -> Result<(), DbError> {
        let mut hold = self.hold();
        self.checkpoint()?;
        super::remove_mark(self)?;
        self.forget_halt()?;
        self.forget_reserve()?;
        self.let_go(&mut hold)
    }

    /// Gives the hold back.
    pub(in super::super) fn let_go(&self, hold: &mut Option<Hold>) -> Result<(), DbError> {
        self.held.store(false, Ordering::Release);
        match hold.take() {
            Some(held) => held.let_go().map_err(DbError::io("unlock", self.path(FileKind::Shm))),
            None => Ok(()),
        }
    }

    pub(super) fn own_open(
        &self,
        own: &dyn OwnMount,
        kind: FileKind,
        create: bool,
    ) -> Result<Box<dyn OwnFile>, DbError> {
        own.open(&self.name, kind, create).map_err(DbError::io("open through the mount", self.path(kind)))
    }

    pub(super) fn busy(&self, what: &str) -> DbError {
        DbError::Busy { db: self.name.clone(), what: what.to_owned() }
    }

    /// The hold of a database in WAL mode; nothing is held of another.
    pub(super) fn take_hold(&self, own: &dyn OwnMount, deadline: Instant) -> Result<Option<Hold>, DbError> {
        let mode = self.file_header()?.map(|header| header.journal_mode());
        if mode != Some(JournalMode::Wal) {
            let reserved = self.reserve(own, deadline).map(drop);
            self.capture()?;
            return reserved.map(|()| None);
        }
        let database = self.own_open(own, FileKind::Database, false)?;
        let lock = || DbError::io("lock", self.path(FileKind::Database));
        if !locks::share(&*database, deadline).map_err(lock())? {
            return Err(self.busy("an application uses it in exclusive mode"));
        }
        self.hold_wal(own, database, deadline).map(Some)
    }

    /// Becomes the writer of the WAL; `database` is locked, at least as a reader does.
    pub(super) fn hold_wal(
        &self,
        own: &dyn OwnMount,
        database: Box<dyn OwnFile>,
        deadline: Instant,
    ) -> Result<Hold, DbError> {
        let shm = self.own_open(own, FileKind::Shm, true)?;
        let wal = self.own_open(own, FileKind::Wal, true)?;
        let lock = || DbError::io("lock", self.path(FileKind::Shm));
        // Alone: what is in the file is of processes that are gone (unixOpenSharedMemory).
        let first = shm.try_lock(LockTo::Exclusive, DMS).map_err(lock())?;
        let shared = locks::lock_until(&*shm, LockTo::Shared, DMS, deadline).map_err(lock())?;
        let writer =
            shared && locks::lock_until(&*shm, LockTo::Exclusive, WAL_WRITE, deadline).map_err(lock())?;
        if !writer {
            return Err(self.busy("an application is writing"));
        }
        self.capture_wal(true)?;
        self.held.store(true, Ordering::Release);
        // Captures that began before have ended after this.
        drop(self.capturing.lock().unwrap_or_else(PoisonError::into_inner));
        match self.begin_writer(wal, shm, first, deadline) {
            Ok(mut writer) => {
                self.publish_ahead(&mut writer)?;
                // What an application writes once the daemon is gone does not count.
                self.put_mark()?;
                Ok(Hold { database, writer })
            }
            Err(error) => {
                self.held.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    fn begin_writer(
        &self,
        wal: Box<dyn OwnFile>,
        shm: Box<dyn OwnFile>,
        first: bool,
        deadline: Instant,
    ) -> Result<Writer, DbError> {
        let io = |attempt| DbError::io(attempt, self.path(FileKind::Shm));
        let (size, pages, captured, file) = {
            let mut state = self.lock();
            let file = self.wal_file(&mut state)?;
            let size = state.page_size.or(self.file_header_of(&mut state)?.map(|header| header.page_size));
            (size, state.pages, state.wal.as_ref().map(|track| (track.header, track.end)), file)
        };
        let (Some(size), Some(file)) = (size, file) else {
            return Err(self.damaged("it is in WAL mode but has no page size"));
        };
        let header = WalHeader::read(&*file).map_err(io("read"))?;
        let found = shm.read(0, wal_index::LEN).map_err(io("read"))?;
        let usable = WalIndex::parse(&found).ok().filter(|index| {
            !first && (index.frames == 0 || header.is_some_and(|header| header.salt == index.salt))
        });
        if let Some(index) = usable {
            let held = header.map_or_else(|| Ok(Vec::new()), |header| frames(&file, &header, index.frames));
            let held = held.map_err(io("read"))?;
            return Writer::take_over((wal, shm), index, header, &held).map_err(io("write"));
        }
        // What SQLite's recovery does, with its locks.
        if !locks::lock_until(&*shm, LockTo::Exclusive, WAL_ALL_BUT_WRITE, deadline).map_err(io("lock"))? {
            return Err(self.busy("applications read it while its wal-index is made"));
        }
        let generation = captured
            .filter(|(track, _)| header.is_some_and(|header| header.salt == track.salt))
            .or(header.map(|header| (header, header.start())));
        let held = match &generation {
            Some((header, end)) => frames(&file, header, end.frames).map_err(io("read"))?,
            None => Vec::new(),
        };
        let generation = generation.map(|(header, end)| (header, end, pages));
        let writer = Writer::make((wal, shm), size, generation, &held).map_err(io("write"))?;
        writer.shm.try_lock(LockTo::Free, WAL_ALL_BUT_WRITE).map_err(io("unlock"))?;
        Ok(writer)
    }

    /// The header in the database file: that which tells SQLite the journal mode.
    pub(super) fn file_header(&self) -> Result<Option<Header>, DbError> {
        self.file_header_of(&mut self.lock())
    }

    fn file_header_of(&self, state: &mut super::super::database::State) -> Result<Option<Header>, DbError> {
        if !state.exists {
            return Ok(None);
        }
        let file = self.database_file(state)?;
        let mut bytes = [0; header::HEADER_LEN];
        let len =
            file.read_upto(&mut bytes, 0).map_err(DbError::io("read", self.path(FileKind::Database)))?;
        Ok(bytes.get(..len).and_then(Header::parse))
    }
}

impl Hold {
    /// Gives every lock back now: closing the files may take a moment.
    fn let_go(self) -> std::io::Result<()> {
        self.writer.shm.try_lock(LockTo::Free, WAL_WRITE)?;
        self.writer.shm.try_lock(LockTo::Free, DMS)?;
        locks::release(&*self.database)
    }

    /// From having the database alone to being one of its readers.
    pub(super) fn become_reader(&self) -> std::io::Result<()> {
        self.database.try_lock(LockTo::Shared, SHARED)?;
        self.database.try_lock(LockTo::Free, PENDING).map(drop)
    }
}

/// The pages that the first frames hold.
pub(super) fn frames(file: &std::fs::File, header: &WalHeader, count: u32) -> std::io::Result<Vec<Pgno>> {
    let mut pages = Vec::with_capacity(count as usize);
    for frame in 1..=count {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let len = file.read_upto(&mut bytes, header.frame_offset(frame))?;
        let head = bytes.get(..len).and_then(FrameHeader::parse);
        pages.push(head.ok_or(std::io::ErrorKind::UnexpectedEof)?.pgno);
    }
    Ok(pages)
}

/// The mode that a database will be in, from its first page.
pub(super) fn mode_of(page: &[u8]) -> Option<(JournalMode, PageSize)> {
    Header::parse(page).map(|header| (header.journal_mode(), header.page_size))
}
