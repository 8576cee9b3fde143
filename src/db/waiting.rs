//! `storage.durability = "archive"`: a transaction counts only once the archive has it.
//! Until then the log has it as prepared, the position stays, and the request that
//! commits it has no answer. Then its journal is made void, which is SQLite's own commit,
//! and the request is answered: an application that dies in between changes nothing. Must
//! not block: who waits is told.
//!
//! Where it is refused the request fails, SQLite rolls back, and the log's record is void.
//! If the archive has it all the same (the put was under way), it comes back from there.

use std::os::unix::fs::FileExt;

use super::database::{Prepared, State};
use super::waiting_wal::Frames;
use super::{Batch, Committed, Database, DbError, Done, FileKind, Verdict};
use crate::sqlite::journal;
use crate::words::{Pgno, Pos};

/// What waits for the archive.
pub(super) enum Waiting {
    /// The prepared transaction that the rollback journal covers, and where it leads.
    Journal(Pos),
    /// One in the WAL.
    Frames(Box<Frames>),
}

impl Database {
    /// Whether a commit counts only once the archive has it, or, under the halt lock, the
    /// primary.
    pub fn archive_first(&self) -> bool {
        self.shared.archive_first() || self.is_halted()
    }

    /// Hands the transaction to the archive that the fsync of the database file has
    /// completed: SQLite makes one before it ends the journal. False if there is none, or
    /// if its end decides over other databases, too; `done` is then never called. To be
    /// followed by [`Database::conclude`].
    pub fn submit_at_sync(&self, done: Done) -> Result<bool, DbError> {
        let mut state = self.lock();
        if state.nonce.is_none() || state.waiting.is_some() || self.has_super_journal(&state)? {
            return Ok(false);
        }
        self.submit_prepared(&mut state, done)
    }

    /// As [`Database::submit_at_sync`], where the thread that wrote the database file last
    /// closes the journal: in DELETE mode SQLite does so before it unlinks it. Only if the
    /// last thing that it writes is there: the change counter, in phase one of a commit
    /// (pager.c, pager_incr_changecounter).
    pub fn submit_at_close(&self, done: Done) -> Result<bool, DbError> {
        let mut state = self.lock();
        let due = state.nonce.is_some() && state.waiting.is_none() && !state.whole;
        if !due || self.has_super_journal(&state)? || !self.counter_moved(&mut state)? {
            return Ok(false);
        }
        self.prepare_rollback(&mut state)?;
        self.submit_prepared(&mut state, done)
    }

    /// Whether the change counter in the database file is another than the one that the
    /// journal would restore.
    fn counter_moved(&self, state: &mut State) -> Result<bool, DbError> {
        const COUNTER: std::ops::Range<usize> = 24..28;
        let (Some(journal), Some(size)) = (state.journal.clone(), state.page_size) else { return Ok(false) };
        let read = || DbError::io("read", self.path(FileKind::Journal));
        let len = journal.metadata().map_err(read())?.len();
        let Some(mut playback) = journal::Playback::open(&*journal, len, size).map_err(read())? else {
            return Ok(false);
        };
        let mut page = Vec::new();
        while let Some(record) = playback.next_record(&mut page).map_err(read())? {
            if record.pgno == Pgno::FIRST {
                let mut now = vec![0; page.len()];
                let file = self.database_file(state)?;
                Self::read_page(&file, size, Pgno::FIRST, &mut now)
                    .map_err(DbError::io("read", self.path(FileKind::Database)))?;
                return Ok(now.get(COUNTER) != page.get(COUNTER));
            }
        }
        Ok(false)
    }

    /// As [`Database::submit_at_sync`], for the transaction that the journal's end would
    /// commit, if nothing before it could.
    pub fn submit_at_end(&self, done: Done) -> Result<bool, DbError> {
        let mut state = self.lock();
        if state.nonce.is_none() {
            return Ok(false);
        }
        self.refuse_while_waiting(&state)?;
        self.prepare_rollback(&mut state)?;
        self.submit_prepared(&mut state, done)
    }

    fn submit_prepared(&self, state: &mut State, done: Done) -> Result<bool, DbError> {
        let Some(prepared) = &state.prepared else { return Ok(false) };
        self.shared.faults.pass("archive.submit").map_err(DbError::io("capture", self.paths.dir()))?;
        let committed = prepared.committed();
        state.waiting = Some(Waiting::Journal(committed.meta.post));
        self.hand_over(committed, done);
        Ok(true)
    }

    /// As [`Database::submit_at_end`], if a write of `start` to the journal's beginning
    /// would end it.
    pub fn submit_at_header(&self, start: &[u8], done: Done) -> Result<bool, DbError> {
        {
            let state = self.lock();
            let mut header = self.journal_header(&state)?;
            header.iter_mut().zip(start).for_each(|(to, byte)| *to = *byte);
            if journal::Header::parse(&header).map(|header| header.nonce) == state.nonce {
                return Ok(false);
            }
        }
        self.submit_at_end(done)
    }

    /// What waited counts, or is taken back.
    ///
    /// # Errors
    /// `NotArchived` or `NotTaken` where it is taken back.
    pub fn conclude(&self, verdict: Verdict) -> Result<(), DbError> {
        let mut state = self.lock();
        match (state.waiting.take(), verdict) {
            (None, _) => Ok(()),
            (Some(Waiting::Journal(_)), Verdict::Archived) => self.end_waiting_journal(&mut state),
            (Some(Waiting::Journal(_)), Verdict::Refused) => Err(self.not_archived()),
            (Some(Waiting::Frames(frames)), Verdict::Archived) => self.enter_frames(&mut state, *frames),
            (Some(Waiting::Frames(frames)), Verdict::Refused) => {
                self.withdraw_frames(&mut state, &frames)?;
                Err(self.not_archived())
            }
        }
    }

    fn not_archived(&self) -> DbError {
        let db = self.name.clone();
        if self.is_halted() { DbError::NotTaken { db } } else { DbError::NotArchived { db } }
    }

    /// The commit of what the journal covers: from here on nobody rolls it back.
    fn end_waiting_journal(&self, state: &mut State) -> Result<(), DbError> {
        let path = self.path(FileKind::Journal);
        self.shared.faults.pass("archive.archived").map_err(DbError::io("write", &path))?;
        if let Some(prepared) = state.prepared.take() {
            self.enter_prepared(state, prepared)?;
        }
        if self.is_halted() {
            // Recovery takes what is prepared here for refused, though its journal is gone.
            self.shared.log.sync()?;
        }
        self.shared.faults.pass("archive.entered").map_err(DbError::io("write", &path))?;
        if let Some(file) = &state.journal {
            file.write_all_at(&[0; journal::HEADER_LEN], 0).map_err(DbError::io("write", path))?;
        }
        state.nonce = None;
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))
    }

    /// Makes what was prepared the position; it has been published.
    fn enter_prepared(&self, state: &mut State, prepared: Prepared) -> Result<(), DbError> {
        if let Err(error) = self.enter_archived(state, &prepared) {
            state.prepared = Some(prepared);
            return Err(error);
        }
        Ok(())
    }

    /// Makes a transaction the position that the log has as prepared and the archive has.
    pub(super) fn enter_archived(&self, state: &mut State, prepared: &Prepared) -> Result<(), DbError> {
        let mut batch = Batch::new();
        batch.commit(&self.name, prepared.change.meta.post);
        self.shared.log.append(&batch)?;
        self.enter_change(state, &prepared.change, prepared.place, prepared.afresh);
        state.captured += 1;
        self.tell_counts(prepared.committed());
        self.show(state.pos);
        Ok(())
    }

    /// A program that heeds no locks changes the database while a commit waits.
    pub(super) fn refuse_while_waiting(&self, state: &State) -> Result<(), DbError> {
        match &state.waiting {
            Some(_) => Err(DbError::Busy {
                db: self.name.clone(),
                what: "a commit waits for the archive, and its application holds SQLite's locks".to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn has_super_journal(&self, state: &State) -> Result<bool, DbError> {
        let Some(file) = &state.journal else { return Ok(false) };
        let read = || DbError::io("read", self.path(FileKind::Journal));
        let len = file.metadata().map_err(read())?.len();
        Ok(journal::super_journal(&**file, len).map_err(read())?.is_some())
    }
}

impl Prepared {
    pub(super) fn committed(&self) -> Committed {
        let Prepared { change, place, .. } = self;
        Committed { place: *place, meta: change.meta.clone(), pages: change.pages.len() as u32 }
    }
}
