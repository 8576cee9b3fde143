//! Capture in the rollback modes. The commit is the journal's end: unlinked,
//! truncated, or its header zeroed (file format §3; a zeroed header is seen at the
//! next request, since the journal itself is in passthrough). The changed pages are
//! those written to the database file since: SQLite does not journal free leaf pages
//! that it uses again, so the journal's own list would miss them.

use std::fs::File;

use super::change::{Builder, Change, Facts};
use super::copied::fitting_size;
use super::database::{Prepared, State, old_sum};
use super::{Batch, Database, DbError, FileKind, Kind};
use crate::sqlite::{ReadAt, header, journal};
use crate::words::{PageSize, Pgno};

/// A change set with what it does to the database's shape.
pub(super) struct Built {
    pub change: Change,
    pub afresh: bool,
}

impl Database {
    /// The header of the journal that is in force; `None` if there is no valid one.
    fn journal_in_force(&self, state: &State) -> Result<Option<journal::Header>, DbError> {
        Ok(journal::Header::parse(&self.journal_header(state)?))
    }

    /// Its nonce.
    pub(super) fn journal_nonce(&self, state: &State) -> Result<Option<u32>, DbError> {
        Ok(self.journal_in_force(state)?.map(|header| header.nonce))
    }

    /// The bytes of the journal's header, as far as there are any; zeroes beyond.
    pub(super) fn journal_header(&self, state: &State) -> Result<[u8; journal::HEADER_LEN], DbError> {
        let mut bytes = [0; journal::HEADER_LEN];
        if let Some(journal) = &state.journal {
            journal.read_upto(&mut bytes, 0).map_err(DbError::io("read", self.path(FileKind::Journal)))?;
        }
        Ok(bytes)
    }

    /// Before a change of the database file in a rollback mode: captures a
    /// transaction whose end was not seen, refuses a change that no journal covers.
    pub(super) fn before_rollback_write(&self, state: &mut State) -> Result<(), DbError> {
        self.refuse_while_waiting(state)?;
        let header = self.journal_in_force(state)?;
        let nonce = header.map(|header| header.nonce);
        if state.nonce.is_some() && state.nonce != nonce {
            self.commit_rollback(state)?;
        }
        if let Some(header) = header {
            state.stated_size = header.page_size;
            state.copying = false;
        }
        if nonce.is_none() && !state.whole && !state.copying {
            tracing::error!(db = %self.name, "refused an unjournaled change: journal_mode MEMORY and OFF have no commit point");
            return Err(DbError::Unjournaled { db: self.name.clone() });
        }
        if nonce.is_some() && nonce != state.synced_nonce {
            // SQLite makes the journal durable before it writes to the database.
            self.mark_unsynced(state)?;
        }
        state.nonce = nonce;
        state.void_due |= state.prepared.take().is_some();
        Ok(())
    }

    /// Notes that the bytes are about to change.
    pub(super) fn mark_dirty(&self, state: &mut State, offset: u64, len: u64) -> Result<(), DbError> {
        let (Some(size), false) = (state.page_size, state.whole) else { return Ok(()) };
        let last = size.page_at(offset + len.max(1) - 1);
        let mut next = size.page_at(offset);
        while let Some(pgno) = next.filter(|pgno| Some(*pgno) <= last || last.is_none()) {
            state.dirty.insert(pgno).map_err(DbError::io("write", self.paths.dirty()))?;
            if let Some(recorder) = &mut state.recorder {
                recorder.written.insert(pgno);
            }
            next = pgno.get().checked_add(1).and_then(Pgno::new);
        }
        Ok(())
    }

    /// Whether something waits for its journal's end.
    fn pending(state: &State) -> bool {
        state.whole || !state.dirty.is_empty() || state.prepared.is_some()
    }

    /// Captures the pending transaction if its journal has ended.
    pub(super) fn settle_rollback(&self, state: &mut State) -> Result<(), DbError> {
        if state.nonce.is_some() && self.journal_nonce(state)? != state.nonce {
            self.commit_rollback(state)?;
        }
        Ok(())
    }

    /// Puts the pending transaction into the log, so that its commit needs no more
    /// than a mark: called at the fsync of the database file that SQLite makes before
    /// it ends the journal.
    pub(super) fn prepare_rollback(&self, state: &mut State) -> Result<(), DbError> {
        if state.prepared.is_some() || !Self::pending(state) || state.nonce.is_none() {
            return Ok(());
        }
        let Some(built) = self.build_rollback(state)? else { return self.void_prepared(state) };
        let mut batch = Batch::new();
        built.change.encode(Kind::Prepared, &mut batch);
        let places = self.shared.log.append(&batch)?;
        state.void_due = false;
        let place = places.first().copied().unwrap_or_default();
        state.prepared = Some(Prepared { change: built.change, place, afresh: built.afresh });
        Ok(())
    }

    /// What was prepared last was taken back: after a loss of power nothing else would
    /// tell that its journal's end was not its commit.
    fn void_prepared(&self, state: &mut State) -> Result<(), DbError> {
        if state.void_due {
            let mut batch = Batch::new();
            batch.commit(&self.name, state.pos);
            self.shared.log.append(&batch)?;
            state.void_due = false;
        }
        Ok(())
    }

    /// The journal is about to end: the commit, or the end of a rollback.
    ///
    /// # Errors
    /// `ReadOnly` if it would be a commit, and this node lost the right to write since
    /// the transaction began: SQLite then rolls back.
    pub(super) fn end_journal(&self, state: &mut State) -> Result<(), DbError> {
        if !self.writable() {
            let prepared = state.prepared.is_some();
            if prepared || (Self::pending(state) && self.build_rollback(state)?.is_some()) {
                return Err(self.read_only());
            }
        }
        self.commit_rollback(state)
    }

    /// The commit: what was written since the last one becomes a transaction.
    pub(super) fn commit_rollback(&self, state: &mut State) -> Result<(), DbError> {
        self.shared.faults.pass("capture.commit").map_err(DbError::io("capture", self.paths.dir()))?;
        if let Some(prepared) = state.prepared.take() {
            let mut batch = Batch::new();
            batch.commit(&self.name, prepared.change.meta.post);
            if let Err(error) = self.shared.log.append(&batch) {
                state.prepared = Some(prepared);
                return Err(error.into());
            }
            self.enter(state, &prepared.change, prepared.place, prepared.afresh);
        } else if Self::pending(state)
            && let Some(built) = self.build_rollback(state)?
        {
            self.commit_change(state, &built.change, built.afresh)?;
        }
        self.void_prepared(state)?;
        self.shared.faults.pass("capture.committed").map_err(DbError::io("capture", self.paths.dir()))?;
        state.nonce = None;
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))
    }

    /// The page size and the size in pages that the file now has: its header's, else (an
    /// encrypted database has no readable one) what its journal or WAL stated, else the
    /// page size that it had, else one that fits, and the length of the file. SQLite
    /// shortens the file only after the commit (pager.c, pager_end_transaction), so the
    /// header counts.
    fn shape_now(&self, state: &State, file: &File, len: u64) -> Result<Option<(PageSize, u32)>, DbError> {
        let by_len = |size: PageSize| {
            u32::try_from(len.div_ceil(u64::from(size.get())))
                .map_err(|_| self.damaged("it has more than 2^32 pages"))
        };
        let mut bytes = [0; header::HEADER_LEN];
        let read =
            file.read_upto(&mut bytes, 0).map_err(DbError::io("read", self.path(FileKind::Database)))?;
        if let Some(header) = header::Header::parse(&bytes[..read]) {
            let pages = by_len(header.page_size)?;
            return Ok(Some((
                header.page_size,
                header.pages().filter(|stated| *stated < pages).unwrap_or(pages),
            )));
        }
        let fits = |size: &PageSize| len.is_multiple_of(u64::from(size.get()));
        let size = state.stated_size.or(state.page_size.filter(fits));
        let size = size.or_else(|| fitting_size(len)).or(state.page_size);
        size.map(|size| by_len(size).map(|pages| (size, pages))).transpose()
    }

    /// A WAL states another page size than was captured: that was taken for one that
    /// fits, since the header cannot be read. The database is captured in its own pages.
    pub(super) fn restate(&self, state: &mut State, size: PageSize) -> Result<(), DbError> {
        if state.page_size.is_none_or(|captured| captured == size) {
            return Ok(());
        }
        state.stated_size = Some(size);
        match self.build_rollback(state)? {
            Some(built) if built.afresh => self.commit_change(state, &built.change, true),
            _ => Ok(()),
        }
    }

    /// The pending change set; `None` if nothing changed, or if the file is no
    /// database whose pages can be told.
    pub(super) fn build_rollback(&self, state: &mut State) -> Result<Option<Built>, DbError> {
        let path = self.path(FileKind::Database);
        let file = self.database_file(state)?;
        let len = file.metadata().map_err(DbError::io("read", &path))?.len();
        let Some((size, commit)) = self.shape_now(state, &file, len)? else {
            if len > 0 {
                tracing::warn!(db = %self.name, "not a SQLite database as far as can be told: kept here only, not archived");
            }
            return Ok(None);
        };
        let afresh = state.whole || state.page_size != Some(size);
        if commit == 0 && state.pos.txid.get() == 0 {
            return Ok(None);
        }
        let before = if afresh { crate::words::Checksum::EMPTY } else { state.pos.checksum };
        let mut builder = Builder::new(&self.shared, before, size);
        let mut page = vec![0; size.len()];
        let mut add = |builder: &mut Builder<'_>, pgno| {
            let old = if afresh { None } else { old_sum(&state.sums, pgno, || self.paths.sums())? };
            Self::read_page(&file, size, pgno, &mut page).map_err(DbError::io("read", &path))?;
            builder.page(pgno, old, &page)
        };
        if afresh {
            for pgno in Pgno::up_to(commit) {
                add(&mut builder, pgno)?;
            }
        } else {
            let inside = state.pages.min(commit);
            for pgno in state.dirty.pages().iter().take_while(|pgno| pgno.get() <= inside) {
                add(&mut builder, *pgno)?;
            }
            for pgno in (state.pages.saturating_add(1)..=commit).filter_map(Pgno::new) {
                add(&mut builder, pgno)?;
            }
            for pgno in (commit.saturating_add(1)..=state.pages).filter_map(Pgno::new) {
                builder.remove(old_sum(&state.sums, pgno, || self.paths.sums())?);
            }
        }
        let facts = Facts {
            db: self.name.clone(),
            pre: state.pos,
            commit,
            timestamp: self.shared.clock.now(),
            wal: None,
            journal: state.nonce.unwrap_or(0),
        };
        let change = builder.finish(facts, if afresh { 0 } else { state.pages })?;
        Ok(change.map(|change| Built { change, afresh }))
    }
}
