//! Opening a database: what a killed daemon or a loss of power left becomes a
//! database file at a captured position. The work follows the log's tail, the journal
//! and the WAL, never the size of the database. No application is there yet.
//!
//! Order: the log's tail gives the position and the page checksums; a hot journal is
//! played back (file format §3.2); after a loss of power the tail's pages are written
//! again; what the WAL has of the position is copied into the database file; what that
//! has beyond the position is captured; the WAL's further transactions are captured
//! and copied, too. Where change sets were being applied (`apply`) the tail's pages are
//! always written again, and the WAL says nothing that the log does not; where applications
//! wrote under the halt lock (`halt`), neither does what the log has as prepared.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

use super::database::{State, read_at_most};
use super::dirty::Dirty;
use super::log::WalEnd;
use super::recover_journal::LeftJournal;
use super::saved::Saved;
use super::sums::Sums;
use super::{Batch, Committed, Database, DbError, FileKind, Paths, ScannedChange, Shared};
use crate::sqlite::header;
use crate::words::{DbName, PageSum, Pgno, Pos};

/// What the log holds of one database.
#[derive(Debug, Default)]
pub struct Tail {
    /// Its committed change sets, in order.
    pub committed: Vec<ScannedChange>,
    /// One that was prepared after the last commit.
    pub prepared: Option<ScannedChange>,
}

/// How the last run ended, as far as local files are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// The same boot of the machine: nothing that was written is lost.
    SameBoot,
    /// Another boot: what was not fsynced may be lost.
    Reboot,
}

impl Database {
    /// Opens database `name` and makes its files consistent. `super_journal` tells
    /// whether a super-journal is still there.
    pub fn recover(
        name: DbName,
        shared: Arc<Shared>,
        tail: Tail,
        since: Since,
        super_journal: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Database, DbError> {
        let paths = Paths::new(&shared.root, &name);
        let saved = Saved::read(&paths.state())?;
        let sums = Sums::open(paths.sums(), saved.pages).map_err(DbError::io("open", paths.sums()))?;
        let dirty = Dirty::open(paths.dirty()).map_err(DbError::io("read", paths.dirty()))?;
        let exists = paths.file(FileKind::Database).exists();
        let whole = saved.pages == 0;
        let unsynced = paths.unsynced().exists();
        let state = State {
            pos: saved.pos,
            page_size: saved.page_size,
            pages: saved.pages,
            exists,
            file: None,
            journal: None,
            kept: None,
            last_nonce: saved.journal,
            sums,
            dirty,
            nonce: None,
            whole,
            copying: false,
            stated_size: None,
            synced_nonce: None,
            synced_salt: None,
            unsynced,
            prepared: None,
            waiting: None,
            void_due: false,
            wal_file: None,
            wal: None,
            shm_opens: 0,
            wal_sealed: false,
            unsaved: false,
            log_from: saved.log_from,
            incomplete: saved.incomplete,
            captured: 0,
            recorder: None,
        };
        let database = Database {
            name,
            paths,
            shared,
            state: Mutex::new(state),
            capturing: Mutex::new(()),
            imaging: Mutex::new(()),
            hold: Mutex::new(None),
            alone: Mutex::new(None),
            reserved: Mutex::new(None),
            halt: super::halt::Halt::default(),
            held: AtomicBool::new(false),
            ahead: AtomicBool::new(false),
            unsalted: AtomicU32::new(0),
            marked: AtomicBool::new(false),
            has_wal: AtomicBool::new(false),
            hidden: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            handles: Mutex::new(HashMap::new()),
            readable: Mutex::new(Pos::ZERO),
        };
        database.recover_files(&saved, tail, since, super_journal)?;
        database.show(database.pos());
        Ok(database)
    }

    fn recover_files(
        &self,
        saved: &Saved,
        mut tail: Tail,
        since: Since,
        super_journal: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), DbError> {
        let state = &mut *self.lock();
        let mut wal_ends: Vec<WalEnd> = saved.wal_end().into_iter().collect();
        tail.committed
            .retain(|change| change.meta.post.txid > saved.pos.txid && change.place >= saved.log_from);
        tail.prepared = tail.prepared.filter(|change| change.place >= saved.log_from);
        // Change sets were being applied: the log says what is committed, and the
        // database file may be behind it.
        let applied = self.paths.applying().exists();
        // What the log has as prepared waited for the primary, which sends it if it took it.
        let halted = self.paths.halted().exists();
        if saved.incomplete {
            self.remove_dropped()?;
            self.leave_incomplete(state)?;
            return self.remove_applying();
        }
        for change in &tail.committed {
            self.replay_facts(state, change)?;
            wal_ends.extend(change.meta.wal);
        }
        self.fence()?;
        if !self.check_presence(state, &tail, since, saved.pages == 0)? {
            return self.remove_applying();
        }
        let behind = applied || since == Since::Reboot;
        let explained = since == Since::Reboot && !applied && !halted;
        let journal = self.recover_journal(state, &tail, saved.journal, explained, super_journal)?;
        self.decide_prepared(state, &mut tail, behind && !halted, journal)?;
        if behind {
            self.redo(state, &tail.committed)?;
        }
        let wal = self.left_wal(&wal_ends)?;
        if let Some(wal) = &wal {
            self.copy_frames(state, wal, wal.known)?;
        }
        self.capture_rest(state, journal)?;
        // Where change sets were applied, every transaction that counts was in the log.
        if let Some(wal) = wal.filter(|_| !applied) {
            self.recover_wal(state, wal)?;
        }
        self.shared.faults.pass("recover.captured").map_err(DbError::io("write", self.paths.dir()))?;
        // What was captured from the WAL was durable there.
        self.shared.log.sync()?;
        self.remove_wal()?;
        self.check_size(state, since)?;
        if since == Since::Reboot {
            // What was captured here explains the database file from now on: a second loss of
            // power must not find it unexplained.
            self.shared.log.sync()?;
        }
        self.remove_applying()
    }

    fn remove_applying(&self) -> Result<(), DbError> {
        self.remove_marks(&[self.paths.halted(), self.paths.applying()])
    }

    /// A change set was prepared, and nothing in the log says what became of it.
    fn decide_prepared(
        &self,
        state: &mut State,
        tail: &mut Tail,
        behind: bool,
        journal: LeftJournal,
    ) -> Result<(), DbError> {
        let Some(prepared) = tail.prepared.take() else { return Ok(()) };
        let mut batch = Batch::new();
        // If its journal is gone, or made way for another, it was committed; only the
        // mark is lost.
        let committed = behind
            && journal != LeftJournal::RolledBack(prepared.meta.journal)
            && prepared.meta.pre == state.pos
            && prepared.meta.post != state.pos;
        batch.commit(&self.name, if committed { prepared.meta.post } else { state.pos });
        self.shared.log.append(&batch)?;
        state.unsaved = true;
        if committed {
            self.replay_facts(state, &prepared)?;
            self.announce(&prepared);
            tail.committed.push(prepared);
        }
        Ok(())
    }

    /// Captures what was written to the database file in a rollback mode after the
    /// position.
    fn capture_rest(&self, state: &mut State, journal: LeftJournal) -> Result<(), DbError> {
        let due = if state.whole {
            // A first transaction whose end nobody saw, or a whole copied-in database.
            journal == LeftJournal::Ended || self.is_whole_database(state)?
        } else {
            !state.dirty.is_empty()
        };
        if due && let Some(built) = self.build_rollback(state)? {
            self.commit_change(state, &built.change, built.afresh)?;
        }
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))
    }

    fn is_whole_database(&self, state: &mut State) -> Result<bool, DbError> {
        let Some(head) = self.header_now(state)? else { return Ok(false) };
        let file = self.database_file(state)?;
        let len = file.metadata().map_err(DbError::io("read", self.path(FileKind::Database)))?.len();
        let stated = head.pages().map(|pages| u64::from(pages) * u64::from(head.page_size.get()));
        Ok(stated.is_some_and(|stated| stated <= len))
    }

    fn is_database(&self, state: &mut State) -> Result<bool, DbError> {
        Ok(self.header_now(state)?.is_some())
    }

    fn header_now(&self, state: &mut State) -> Result<Option<header::Header>, DbError> {
        let file = self.database_file(state)?;
        let mut bytes = [0; header::HEADER_LEN];
        let len = read_at_most(&file, &mut bytes, 0);
        let len = len.map_err(DbError::io("read", self.path(FileKind::Database)))?;
        Ok(header::Header::parse(&bytes[..len]))
    }

    /// Between two positions: only the archive's head can complete it.
    fn leave_incomplete(&self, state: &mut State) -> Result<(), DbError> {
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            remove_if_there(&self.path(kind)).map_err(DbError::io("remove", self.path(kind)))?;
        }
        if state.pages == 0 && state.exists {
            // It may be kept under another name, too (parked): not to be written to.
            remove_if_there(&self.path(FileKind::Database))
                .map_err(DbError::io("remove", self.path(FileKind::Database)))?;
            state.exists = false;
        }
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))
    }

    /// Enters a change set of the log.
    fn replay_facts(&self, state: &mut State, change: &ScannedChange) -> Result<(), DbError> {
        let meta = &change.meta;
        if meta.pre != state.pos {
            return Err(self.damaged(format!(
                "its change log goes from {} to {}, but the database stands at {}; move the data directory aside \
                 and start again: the node then restores from the archive",
                meta.pre, meta.post, state.pos
            )));
        }
        if meta.commit == 0 {
            state.sums.clear();
        }
        for pgno in (meta.commit.saturating_add(1)..=state.pages).filter_map(Pgno::new) {
            state.sums.set(pgno, None);
        }
        state.sums.set(meta.page_size.lock_page(), None);
        for (pgno, sum) in &change.pages {
            state.sums.set(*pgno, Some(*sum));
        }
        state.pos = meta.post;
        state.last_nonce = meta.journal;
        state.page_size = Some(meta.page_size);
        state.pages = meta.commit;
        state.whole = meta.commit == 0;
        state.unsaved = true;
        Ok(())
    }

    fn announce(&self, change: &ScannedChange) {
        self.shared.listener.committed(Committed {
            place: change.place,
            meta: change.meta.clone(),
            pages: change.pages.len() as u32,
        });
    }

    /// Whether there is a database file to recover. `made`: the tail has it from its first
    /// page on.
    fn check_presence(
        &self,
        state: &mut State,
        tail: &Tail,
        since: Since,
        made: bool,
    ) -> Result<bool, DbError> {
        let path = self.path(FileKind::Database);
        // A loss of power may have taken the names of directory and file.
        fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
        self.recover_dropped(state)?;
        let made = made || tail.committed.iter().any(|change| change.meta.commit == 0);
        if !state.exists && state.pages > 0 && since == Since::Reboot && made {
            // The log has all of it.
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
            state.file = Some(Arc::new(file.map_err(DbError::io("create", &path))?));
            state.exists = true;
        }
        if !state.exists && state.pages > 0 {
            return Err(self.damaged(format!(
                "its file {} is gone; put it back, or move the data directory aside and start again: the node then \
                 restores from the archive",
                path.display()
            )));
        }
        Ok(state.exists)
    }

    /// Writes the pages of the log's tail into the database file again.
    fn redo(&self, state: &mut State, changes: &[ScannedChange]) -> Result<(), DbError> {
        let (path, Some(size)) = (self.path(FileKind::Database), state.page_size) else { return Ok(()) };
        if changes.is_empty() || state.pages == 0 {
            return Ok(());
        }
        let database = self.database_file(state)?;
        let mut page = Vec::new();
        for change in changes {
            let stored = self.shared.log.read(change.place)?;
            let size = stored.meta.page_size;
            for (index, (pgno, _)) in stored.pages.iter().enumerate() {
                stored.page(index, &mut page)?;
                database.write_all_at(&page, size.offset_of(*pgno)).map_err(DbError::io("write", &path))?;
            }
            let len = u64::from(stored.meta.commit) * u64::from(size.get());
            database.set_len(len).map_err(DbError::io("truncate", &path))?;
        }
        let len = u64::from(state.pages) * u64::from(size.get());
        database.set_len(len).map_err(DbError::io("truncate", &path))?;
        database.sync_data().map_err(DbError::io("sync", &path))
    }

    /// A database file that somebody changed while the node was down is refused, as
    /// far as size and first page show it.
    fn check_size(&self, state: &mut State, since: Since) -> Result<(), DbError> {
        if since == Since::Reboot && state.unsynced {
            // Of one that was captured, however much of it is left.
            let taken = if state.whole { self.is_whole_database(state)? } else { self.is_database(state)? };
            if taken {
                self.adopt(state)?;
            }
        }
        let Some(size) = state.page_size.filter(|_| !state.whole) else { return Ok(()) };
        let path = self.path(FileKind::Database);
        let database = self.database_file(state)?;
        let len = database.metadata().map_err(DbError::io("read", &path))?.len();
        let mut page = vec![0; size.len()];
        Self::read_page(&database, size, Pgno::FIRST, &mut page).map_err(DbError::io("read", &path))?;
        let sum = PageSum::of(Pgno::FIRST, &page);
        let stated = state.sums.get(Pgno::FIRST).map_err(DbError::io("read", self.paths.sums()))?;
        let whole = u64::from(state.pages) * u64::from(size.get());
        if len > whole.saturating_sub(u64::from(size.get())) && stated == Some(sum) {
            // SQLite cuts the file only after the commit.
            return if len > whole {
                database.set_len(whole).map_err(DbError::io("truncate", &path))
            } else {
                Ok(())
            };
        }
        if since == Since::Reboot && header::is_database(&page) {
            // The mark of synchronous=OFF was not durable either.
            return self.adopt(state);
        }
        Err(self.damaged(format!(
            "{} is not what was captured at {}: it was changed while the node was down ({} bytes, header {}); move \
             the data directory aside and start again: the node then restores from the archive (to keep the changed \
             file, import it with litefs import afterwards)",
            path.display(),
            state.pos,
            len,
            if header::is_database(&page) { "readable" } else { "not readable" }
        )))
    }
}

impl Database {
    /// With synchronous=OFF a loss of power leaves a database file that nothing
    /// explains: SQLite would take it as it is, so what differs becomes a transaction.
    fn adopt(&self, state: &mut State) -> Result<(), DbError> {
        let before = state.pos;
        for pgno in Pgno::up_to(state.pages) {
            state.dirty.insert(pgno).map_err(DbError::io("write", self.paths.dirty()))?;
        }
        if let Some(built) = self.build_rollback(state)? {
            self.commit_change(state, &built.change, built.afresh)?;
        }
        if state.pos != before {
            tracing::error!(
                db = %self.name,
                "the loss of power left pages that were never captured, as synchronous=OFF allows: they are taken over \
                 as a transaction; run PRAGMA integrity_check"
            );
        }
        if let Some(size) = state.page_size {
            // What is missing of the last page was taken for zeros.
            let path = self.path(FileKind::Database);
            let whole = u64::from(state.pages) * u64::from(size.get());
            self.database_file(state)?.set_len(whole).map_err(DbError::io("truncate", path))?;
        }
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))
    }
}

/// True if it was there.
pub(super) fn remove_if_there(path: &Path) -> std::io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
