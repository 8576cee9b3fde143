//! One database: its state in memory and the operations that do not depend on the
//! journal mode. Capture is in `rollback` and `wal`.
//!
//! Locks, in this order: `hold`, `reserved`, `imaging`, `capturing`, `state`, `handles`, `readable`. `state` is held while the
//! database file is written and while a transaction is captured; never while waiting
//! for a request that the mount itself must answer: its threads take `state`, too.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::change::Change;
use super::dirty::Dirty;
use super::image::Recorder;
use super::sums::Sums;
use super::wal::WalTrack;
use super::{Batch, Committed, DbError, FileKind, Kind, Paths, Place, Shared};
use crate::words::{DbName, PageSize, PageSum, Pgno, Pos};

/// One database of the mount, present or dropped.
pub struct Database {
    pub(super) name: DbName,
    pub(super) paths: Paths,
    pub(super) shared: Arc<Shared>,
    pub(super) state: Mutex<State>,
    /// Held by the one thread that captures from the WAL; taken before `state`.
    pub(super) capturing: Mutex<()>,
    /// Held by the one thread that copies the database; taken first.
    pub(super) imaging: Mutex<()>,
    /// Whether applications have a WAL here.
    pub(super) has_wal: AtomicBool,
    /// Applications do not get it yet.
    pub(super) hidden: AtomicBool,
    /// The journal was unlinked: its file is kept for the next one.
    pub(super) retired: AtomicBool,
    /// The daemon's own connection where it keeps applications from writing.
    pub(super) hold: Mutex<Option<super::apply::Hold>>,
    /// A lock that outlives a failure: the file is between two positions.
    pub(super) alone: Mutex<Option<Box<dyn super::OwnFile>>>,
    /// The lock by which applications wait while another node may write (rollback modes).
    pub(super) reserved: Mutex<Option<Box<dyn super::OwnFile>>>,
    pub(super) halt: super::halt::Halt,
    /// Whether frames count that their writer has not published yet.
    pub(super) ahead: AtomicBool,
    /// The last frame of a transaction, while its header has no salts yet; else 0.
    pub(super) unsalted: AtomicU32,
    /// Whether only the daemon writes the WAL: there is nothing to capture.
    pub(super) held: AtomicBool,
    /// Whether the mark of applied change sets is there.
    pub(super) marked: AtomicBool,
    /// Journal, WAL and shm for writes that come through the daemon.
    pub(super) handles: Mutex<HashMap<FileKind, Arc<File>>>,
    /// What readers see; the innermost lock.
    pub(super) readable: Mutex<Pos>,
}

/// What a look for new transactions found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captured {
    /// Everything committed is captured.
    Settled,
    /// A writer is at work: look again soon.
    Again,
}

/// How an application opens a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenHow {
    /// For writing, too.
    pub write: bool,
    /// Create it if it is missing.
    pub create: bool,
    /// Fail if it is there.
    pub exclusive: bool,
    /// Without what it holds, if it is there.
    pub truncate: bool,
    /// The mode of a new file.
    pub mode: u32,
}

/// The mutable part of a database.
pub(super) struct State {
    /// Position of the last captured transaction.
    pub pos: Pos,
    /// Page size as of `pos`; `None` before the first transaction.
    pub page_size: Option<PageSize>,
    /// Size in pages as of `pos`.
    pub pages: u32,
    /// Whether the database file is there.
    pub exists: bool,
    /// The database file.
    pub file: Option<Arc<File>>,
    /// The rollback journal, opened by us while an application may use it.
    pub journal: Option<Arc<File>>,
    /// The file of a journal that was retired, if it was open.
    pub kept: Option<Arc<File>>,
    /// Checksums of the pages as of `pos`.
    pub sums: Sums,
    /// Pages written since.
    pub dirty: Dirty,
    /// The nonce of the journal that covers what is dirty.
    pub nonce: Option<u32>,
    /// Nothing of the file is captured: all of it is dirty.
    pub whole: bool,
    /// Whoever made the file has it open and has used no journal: it is copied in.
    pub copying: bool,
    /// The page size that a journal or WAL has stated since: of an encrypted database
    /// nothing else tells it.
    pub stated_size: Option<PageSize>,
    /// The nonce of the journal that covered the last transaction; 0: none did.
    pub last_nonce: u32,
    /// The nonce of the journal that was made durable last.
    pub synced_nonce: Option<u32>,
    /// The salts of the WAL that was made durable last.
    pub synced_salt: Option<[u32; 2]>,
    /// The mark of synchronous=OFF is on the disk.
    pub unsynced: bool,
    /// A change set that waits for its journal's end.
    pub prepared: Option<Prepared>,
    /// What waits for the archive.
    pub waiting: Option<super::waiting::Waiting>,
    /// The log has a prepared change set that was taken back.
    pub void_due: bool,
    /// The WAL, opened by us while there is one.
    pub wal_file: Option<Arc<File>>,
    /// The WAL as far as it was captured.
    pub wal: Option<WalTrack>,
    /// How often applications opened the wal-index.
    pub shm_opens: u64,
    /// No wal-index will ever publish more frames of this WAL.
    pub wal_sealed: bool,
    /// The saved state is older than `pos`.
    pub unsaved: bool,
    /// Records of the log before this place are of another past.
    pub log_from: Place,
    /// An install or a catch-up was cut off.
    pub incomplete: bool,
    /// Transactions captured since the start.
    pub captured: u64,
    /// Follows what happens while the file is being copied.
    pub recorder: Option<Recorder>,
}

/// A change set in the log that becomes a transaction when its journal ends.
pub(super) struct Prepared {
    pub change: Change,
    pub place: Place,
    pub afresh: bool,
}

impl Database {
    /// The database's name.
    pub fn name(&self) -> &DbName {
        &self.name
    }

    /// The backing file of `kind`.
    pub fn path(&self, kind: FileKind) -> PathBuf {
        self.paths.file(kind)
    }

    /// Its directory below the data directory.
    pub fn dir(&self) -> PathBuf {
        self.paths.dir().to_owned()
    }

    /// Position of the last captured transaction.
    pub fn pos(&self) -> Pos {
        self.lock().pos
    }

    /// The position that who reads the database sees. Unlike [`Database::pos`] it is never
    /// ahead of the files while a change set is being applied, and never waits for a disk.
    pub fn readable_pos(&self) -> Pos {
        *self.readable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readers see this position from now on, unless they do not see the database yet.
    pub(super) fn show(&self, pos: Pos) {
        if self.is_hidden() {
            return;
        }
        *self.readable.lock().unwrap_or_else(PoisonError::into_inner) = pos;
        self.shared.listener.moved();
    }

    /// Page size and size in pages as of the position.
    pub fn shape(&self) -> (Option<PageSize>, u32) {
        let state = self.lock();
        (state.page_size, state.pages)
    }

    /// How many transactions were captured since the start.
    pub fn captured(&self) -> u64 {
        self.lock().captured
    }

    /// Whether the database file is there (false once it was dropped).
    pub fn exists(&self) -> bool {
        self.lock().exists
    }

    /// Records of the log before this place are not of this database's past.
    pub fn log_from(&self) -> Place {
        self.lock().log_from
    }

    /// The oldest record of the log that a copy of the database, or one that is being
    /// made, would need, or that still waits for its commit.
    pub fn oldest_needed(&self) -> Option<Place> {
        let state = self.lock();
        let wal = state.wal.as_ref().and_then(|track| track.places().first().copied());
        let copy = state.recorder.as_ref().and_then(|recorder| recorder.commits.first().copied());
        let prepared = state.prepared.as_ref().map(|prepared| prepared.place);
        [wal, copy, prepared].into_iter().flatten().min()
    }

    /// Captures what is committed; then the position.
    pub fn current_pos(&self) -> Result<Pos, DbError> {
        self.capture()?;
        Ok(self.pos())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read_only(&self) -> DbError {
        DbError::ReadOnly { db: self.name.clone() }
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> DbError {
        DbError::Damaged { db: self.name.clone(), what: what.into() }
    }

    /// The database file, opened once.
    pub(super) fn database_file(&self, state: &mut State) -> Result<Arc<File>, DbError> {
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let path = self.path(FileKind::Database);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(DbError::io("open", path))?;
        let file = Arc::new(file);
        state.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Creates the database file with this mode; one that was dropped comes back, its
    /// TXIDs go on.
    pub(crate) fn create(&self, mode: u32) -> Result<(), DbError> {
        if !self.shared.writable() {
            return Err(self.read_only());
        }
        let mut state = self.lock();
        fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
        let path = self.path(FileKind::Database);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode & 0o7777)
            .open(&path)
            .map_err(DbError::io("create", path))?;
        if !state.exists {
            state.exists = true;
            state.whole = true;
            state.copying = true;
            state.file = Some(Arc::new(file));
        }
        Ok(())
    }

    /// Appends `change` as a committed transaction and enters it.
    pub(super) fn commit_change(
        &self,
        state: &mut State,
        change: &Change,
        afresh: bool,
    ) -> Result<(), DbError> {
        let mut batch = Batch::new();
        change.encode(Kind::Change, &mut batch);
        let places = self.shared.log.append(&batch)?;
        let place = places.first().copied().unwrap_or_default();
        self.enter(state, change, place, afresh);
        Ok(())
    }

    /// Makes `change`, which is in the log at `place`, the database's position, and
    /// tells of it.
    pub(super) fn enter(&self, state: &mut State, change: &Change, place: Place, afresh: bool) {
        self.enter_change(state, change, place, afresh);
        state.captured += change.meta.post.txid.get() - change.meta.pre.txid.get();
        self.shared.listener.committed(Committed {
            place,
            meta: change.meta.clone(),
            pages: change.pages.len() as u32,
        });
        self.show(state.pos);
    }

    /// Makes `change`, which is in the log at `place`, the database's position.
    pub(super) fn enter_change(&self, state: &mut State, change: &Change, place: Place, afresh: bool) {
        change.enter(&mut state.sums, afresh);
        state.pos = change.meta.post;
        state.last_nonce = change.meta.journal;
        state.page_size = Some(change.meta.page_size);
        state.stated_size = None;
        state.pages = change.meta.commit;
        state.whole = false;
        state.unsaved = true;
        state.void_due = false;
        if let Some(recorder) = &mut state.recorder {
            recorder.commits.push(place);
        }
        if let Some(track) = &mut state.wal {
            track.place(place);
        }
    }

    /// Reads the database page at `pgno` from the file; bytes beyond its end are zero.
    pub(super) fn read_page(file: &File, size: PageSize, pgno: Pgno, buf: &mut [u8]) -> std::io::Result<()> {
        read_at_most(file, buf, size.offset_of(pgno)).map(|read| buf[read..].fill(0))
    }
}

/// Reads until `buf` is full or the file ends.
pub(super) fn read_at_most(file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The checksums of several pages as the table has them.
pub(super) fn old_sum(
    sums: &Sums,
    pgno: Pgno,
    path: impl Fn() -> PathBuf,
) -> Result<Option<PageSum>, DbError> {
    sums.get(pgno).map_err(|source| DbError::Io { attempt: "read", path: path(), source })
}
