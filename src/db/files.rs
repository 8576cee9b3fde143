//! What applications do to the files of a database, as the mount reports it. Must
//! not decide what is a commit: that is `rollback` and `wal`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::change::{Builder, Facts};
use super::database::{State, read_at_most};
use super::recover::remove_if_there;
use super::{Captured, Database, DbError, FileKind, OpenHow, WalIndex};
use crate::sqlite::wal::WalHeader;
use crate::sqlite::wal_index;
use crate::words::{PageSize, Pgno, start_writing};

impl Database {
    /// Opens or creates one of the files for an application.
    ///
    /// # Errors
    /// `ReadOnly` where the open could only serve a write and this node may not: the
    /// errno must be EACCES, which SQLite reports at once as a read-only database.
    pub fn open(&self, kind: FileKind, how: OpenHow) -> Result<Arc<File>, DbError> {
        let path = self.path(kind);
        if how.write && kind == FileKind::Journal && !self.writable() && !self.is_hot()? {
            return Err(self.read_only());
        }
        let mut state = self.lock();
        let retired = self.is_retired(kind);
        if retired && !how.create {
            return Err(DbError::io("open", &path)(io::ErrorKind::NotFound.into()));
        }
        if kind == FileKind::Wal && how.create {
            // A transaction whose journal ended unseen comes before the first of the WAL.
            self.settle_rollback(&mut state)?;
        }
        let kept = if retired && how.write { state.kept.take() } else { None };
        let file = match kept {
            Some(kept) => kept,
            None => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(how.write)
                    .create(how.create && how.write)
                    .create_new(how.exclusive && how.create && !retired)
                    .mode(how.mode & 0o7777)
                    .open(&path);
                Arc::new(file.map_err(DbError::io("open", &path))?)
            }
        };
        if retired {
            if how.exclusive || how.truncate {
                file.set_len(0).map_err(DbError::io("truncate", &path))?;
            }
            self.retired.store(false, Ordering::Release);
        }
        match kind {
            FileKind::Journal if how.write => {
                self.settle_rollback(&mut state)?;
                state.journal = Some(Arc::clone(&file));
            }
            FileKind::Wal if how.write => {
                state.wal_file = Some(Arc::clone(&file));
                // Whoever opens a WAL without a wal-index makes one, from the chain.
                state.wal_sealed = false;
                state.copying = false;
                self.has_wal.store(true, Ordering::Release);
            }
            _ => {}
        }
        if how.create {
            self.handles().remove(&kind);
        }
        Ok(file)
    }

    /// An application has the wal-index open from now on, and has not been told yet.
    pub fn shm_opened(&self) {
        self.lock().shm_opens += 1;
    }

    /// Reads a file that is not in passthrough.
    pub fn read(&self, kind: FileKind, offset: u64, buf: &mut [u8]) -> Result<usize, DbError> {
        let path = self.path(kind);
        let file = match kind {
            FileKind::Database => {
                let mut state = self.lock();
                self.database_file(&mut state)?
            }
            _ => self.handle(kind)?,
        };
        read_at_most(&file, buf, offset).map_err(DbError::io("read", path))
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<FileKind, Arc<File>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets our handle of a file that goes.
    pub(super) fn forget_handle(&self, kind: FileKind) {
        self.handles().remove(&kind);
    }

    /// Our handle of a journal, WAL or shm.
    pub(super) fn handle(&self, kind: FileKind) -> Result<Arc<File>, DbError> {
        let mut handles = self.handles();
        if let Some(file) = handles.get(&kind) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(kind);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(DbError::io("open", path))?;
        let file = Arc::new(file);
        handles.insert(kind, Arc::clone(&file));
        Ok(file)
    }

    /// Whether a write is only that, so that it may be done in the request loop.
    pub fn write_is_quick(&self, kind: FileKind) -> bool {
        match kind {
            FileKind::Database => !self.has_wal.load(Ordering::Acquire),
            FileKind::Journal | FileKind::Wal | FileKind::Shm => true,
        }
    }

    /// Writes to a file.
    pub fn write(&self, kind: FileKind, offset: u64, data: &[u8]) -> Result<(), DbError> {
        if kind != FileKind::Database {
            let written = self.handle(kind)?.write_all_at(data, offset);
            return written.map_err(|error| DbError::io("write", self.path(kind))(error));
        }
        self.barrier()?;
        self.write_database(&mut self.lock(), offset, data)
    }

    /// As `write`, if it takes no longer than the write itself; `None`: it may have to
    /// wait, and is to be done by a thread that serves no requests.
    pub fn write_at_once(&self, kind: FileKind, offset: u64, data: &[u8]) -> Option<Result<(), DbError>> {
        if self.write_is_quick(kind) {
            return Some(self.write(kind, offset, data));
        }
        // The capture that `write` would wait for, done already: most writes of a
        // checkpoint find it so.
        let _one_at_a_time = self.capturing.try_lock().ok()?;
        let index = match self.shared.own()?.wal_index_at_once(&self.name)? {
            WalIndex::Used(bytes) => wal_index::WalIndex::parse(&bytes[..]).ok()?,
            WalIndex::Unused => return None,
        };
        let mut state = self.state.try_lock().ok()?;
        let track = state.wal.as_ref()?;
        let captured = track.header.salt == index.salt && track.end.frames == index.frames;
        (captured && !self.held.load(Ordering::Acquire) && !self.is_halted())
            .then(|| self.write_database(&mut state, offset, data))
    }

    fn write_database(&self, state: &mut State, offset: u64, data: &[u8]) -> Result<(), DbError> {
        match self.before_write(state, offset, data.len() as u64) {
            // The rollback of a transaction that had not got to the database yet.
            Err(DbError::ReadOnly { .. } | DbError::Full { .. }) if self.is_there(state, offset, data)? => {
                return Ok(());
            }
            allowed => allowed?,
        }
        let file = self.database_file(state)?;
        file.write_all_at(data, offset)
            .map_err(|error| DbError::io("write", self.path(FileKind::Database))(error))
    }

    /// Whether the database file holds these bytes already.
    fn is_there(&self, state: &mut State, offset: u64, data: &[u8]) -> Result<bool, DbError> {
        let file = self.database_file(state)?;
        let mut held = vec![0; data.len()];
        let read = read_at_most(&file, &mut held, offset);
        let read = read.map_err(DbError::io("read", self.path(FileKind::Database)))?;
        Ok(read == data.len() && held == data)
    }

    /// Whether a journal lies there that has to be rolled back before anyone can read.
    pub(super) fn is_hot(&self) -> Result<bool, DbError> {
        let path = self.path(FileKind::Journal);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(DbError::io("open", path)(source)),
        };
        let header = crate::sqlite::journal::Header::read(&file).map_err(DbError::io("read", path))?;
        Ok(header.is_some())
    }

    /// Captures what the WAL holds, before anything can destroy it.
    fn barrier(&self) -> Result<(), DbError> {
        if self.has_wal.load(Ordering::Acquire) {
            self.capture_wal(true)?;
        }
        Ok(())
    }

    /// Before `len` bytes of the database file change, after the barrier: the rules of
    /// the rollback modes.
    fn before_write(&self, state: &mut State, offset: u64, len: u64) -> Result<(), DbError> {
        if self.is_checkpoint(state, offset, len) {
            if self.held.load(Ordering::Acquire) || self.is_halted() {
                // An application's checkpoint on a replica: the log explains it.
                self.shared.log.sync()?;
            }
            // SQLite makes the WAL durable before a checkpoint.
            let synced = state.synced_salt == state.wal.as_ref().map(|track| track.header.salt);
            return if synced { Ok(()) } else { self.mark_unsynced(state) };
        }
        // A transaction that began before this node lost the right to write may be rolled
        // back: its journal's end is refused instead.
        if !self.writable() && state.nonce.is_none() {
            return Err(self.read_only());
        }
        // One that began before there was no room may go on.
        if state.nonce.is_none() && self.has_no_room() {
            return Err(DbError::Full { db: self.name.clone() });
        }
        self.before_rollback_write(state)?;
        self.mark_dirty(state, offset, len)
    }

    /// Whether applications may add nothing to what waits for the archive.
    pub fn has_no_room(&self) -> bool {
        self.shared.listener.is_full() && self.shared.writable()
    }

    /// Whether these bytes are pages that captured frames of the WAL hold.
    fn is_checkpoint(&self, state: &State, offset: u64, len: u64) -> bool {
        let Some(track) = &state.wal else { return false };
        let size: PageSize = track.header.page_size;
        let (first, last) = (size.page_at(offset), size.page_at(offset + len.max(1) - 1));
        let (Some(first), Some(last)) = (first, last) else { return false };
        (first.get()..=last.get()).filter_map(Pgno::new).all(|pgno| track.has(pgno))
    }

    /// Changes a file's size. Of a journal: a commit.
    pub fn resize(&self, kind: FileKind, size: u64) -> Result<(), DbError> {
        let path = self.path(kind);
        if matches!(kind, FileKind::Database | FileKind::Wal) {
            self.barrier()?;
        }
        if kind == FileKind::Wal && size == 0 {
            self.before_wal_goes()?;
        }
        let mut state = self.lock();
        match kind {
            FileKind::Database => self.before_resize(&mut state, size)?,
            FileKind::Journal if size == 0 && state.nonce.is_some() => self.end_journal(&mut state)?,
            FileKind::Wal if size == 0 => state.wal = None,
            FileKind::Wal | FileKind::Journal | FileKind::Shm => {}
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(DbError::io("open", &path))?;
        file.set_len(size).map_err(DbError::io("truncate", path))
    }

    fn before_resize(&self, state: &mut State, size: u64) -> Result<(), DbError> {
        // In EXCLUSIVE mode the journal's end is seen here first.
        self.settle_rollback(state)?;
        let file = self.database_file(state)?;
        let now = file.metadata().map_err(DbError::io("read", self.path(FileKind::Database)))?.len();
        // A checkpoint that has copied every frame cuts or extends the file to the size
        // that the last transaction stated; so does, after the journal's end, a commit
        // that left the file too long (pager.c, pager_end_transaction).
        let stated = state.page_size.map(|page| u64::from(page.get()) * u64::from(state.pages));
        let settled = state.wal.is_some() || (size <= now && state.dirty.is_empty() && !state.whole);
        if settled && stated.is_some_and(|stated| size >= stated) {
            return Ok(());
        }
        if size == now {
            return Ok(());
        }
        if !self.writable() && state.nonce.is_none() {
            return Err(self.read_only());
        }
        self.before_rollback_write(state)?;
        // The pages between are new or gone: the size tells at the commit. The last
        // one may be cut.
        self.mark_dirty(state, size.min(now).saturating_sub(1), 1)
    }

    /// Makes a file durable. Before that of the database, what the log needs is too.
    pub fn sync(&self, kind: FileKind) -> Result<(), DbError> {
        let path = self.path(kind);
        if kind == FileKind::Database {
            self.barrier()?;
        }
        let file = {
            let mut state = self.lock();
            match kind {
                FileKind::Database => {
                    self.settle_rollback(&mut state)?;
                    self.prepare_rollback(&mut state)?;
                    self.database_file(&mut state)?
                }
                FileKind::Journal => {
                    let ended = state.nonce.is_some();
                    self.settle_rollback(&mut state)?;
                    if ended && state.nonce.is_none() {
                        self.shared.log.sync()?;
                    }
                    match &state.journal {
                        Some(journal) => Arc::clone(journal),
                        None => Arc::new(File::open(&path).map_err(DbError::io("open", &path))?),
                    }
                }
                FileKind::Wal => match &state.wal_file {
                    Some(wal) => Arc::clone(wal),
                    None => Arc::new(File::open(&path).map_err(DbError::io("open", &path))?),
                },
                FileKind::Shm => return Ok(()),
            }
        };
        if kind == FileKind::Database {
            // Both are on their way to the disk at once.
            start_writing(&file, 0, 0);
            self.shared.log.start_sync();
            self.shared.log.sync()?;
        }
        self.shared.faults.pass("db.sync").map_err(DbError::io("sync", &path))?;
        file.sync_data().map_err(DbError::io("sync", &path))?;
        match kind {
            FileKind::Journal => {
                let mut state = self.lock();
                state.synced_nonce = self.journal_nonce(&state)?;
            }
            FileKind::Wal => {
                let header = WalHeader::read(&*file).map_err(DbError::io("read", path))?;
                self.lock().synced_salt = header.map(|header| header.salt);
            }
            FileKind::Database | FileKind::Shm => {}
        }
        Ok(())
    }

    /// A handle of a file is closed (close(2)): a journal that PERSIST ended is seen, what
    /// was copied in is captured.
    pub fn flush(&self, kind: FileKind) -> Result<(), DbError> {
        match kind {
            FileKind::Journal => self.settle_rollback(&mut self.lock()),
            FileKind::Database => self.capture_copy(&mut self.lock(), false),
            FileKind::Wal | FileKind::Shm => Ok(()),
        }
    }

    /// Unlinks a file. Of the journal: the commit. Of the database: the drop.
    pub fn remove(&self, kind: FileKind) -> Result<(), DbError> {
        let path = self.path(kind);
        if kind != FileKind::Journal {
            self.barrier()?;
        }
        if matches!(kind, FileKind::Wal | FileKind::Shm) {
            self.before_wal_goes()?;
        }
        let mut state = self.lock();
        match kind {
            FileKind::Database => return self.drop_database(&mut state),
            FileKind::Journal => {
                if state.nonce.is_some() {
                    self.end_journal(&mut state)?;
                }
                state.journal = None;
            }
            FileKind::Wal => {
                state.wal = None;
                state.wal_file = None;
                state.wal_sealed = false;
                self.has_wal.store(false, Ordering::Release);
            }
            FileKind::Shm => {
                // The last connection deletes it before the WAL, after its checkpoint:
                // frames that were never published must not count from here on. That
                // includes a generation of which nothing was published yet.
                state.wal_sealed = true;
            }
        }
        self.handles().remove(&kind);
        fs::remove_file(&path).map_err(DbError::io("remove", &path))?;
        drop(state);
        self.shared.faults.pass("db.removed").map_err(DbError::io("remove", path))
    }

    fn drop_database(&self, state: &mut State) -> Result<(), DbError> {
        if !self.shared.writable() {
            return Err(self.read_only());
        }
        self.refuse_while_waiting(state)?;
        let path = self.path(FileKind::Database);
        if self.forget_kept_journal(state) {
            let journal = self.path(FileKind::Journal);
            remove_if_there(&journal).map_err(DbError::io("remove", journal))?;
        }
        if let (true, Some(size)) = (state.pages > 0, state.page_size) {
            let facts = Facts {
                db: self.name.clone(),
                pre: state.pos,
                commit: 0,
                timestamp: self.shared.clock.now(),
                wal: None,
                journal: 0,
            };
            let builder = Builder::new(&self.shared, crate::words::Checksum::EMPTY, size);
            if let Some(change) = builder.finish(facts, state.pages)? {
                self.set_aside()?;
                if let Err(error) = self.commit_change(state, &change, true) {
                    self.put_back()?;
                    return Err(error);
                }
            }
        }
        state.exists = false;
        state.whole = true;
        state.file = None;
        state.nonce = None;
        state.prepared = None;
        state.wal = None;
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))?;
        self.shared.log.sync()?;
        if self.remove_dropped()? {
            return Ok(());
        }
        fs::remove_file(&path).map_err(DbError::io("remove", path))
    }

    /// Captures what is committed.
    pub fn capture(&self) -> Result<Captured, DbError> {
        if self.has_wal.load(Ordering::Acquire) {
            return self.capture_wal(false);
        }
        self.settle_rollback(&mut self.lock())?;
        Ok(Captured::Settled)
    }

    /// Sets mode and owner of a file.
    pub fn set_attributes(
        &self,
        kind: FileKind,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), DbError> {
        let path = self.path(kind);
        let set = || -> io::Result<()> {
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(&path, uid, gid)?;
            }
            match mode {
                Some(mode) => fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777)),
                None => Ok(()),
            }
        };
        set().map_err(DbError::io("change attributes of", &path))
    }
}
