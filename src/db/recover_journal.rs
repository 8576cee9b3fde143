//! The journal that a killed daemon or a loss of power left: whether it is hot, and its
//! playback (file format §3.2).
//!
//! After a loss of power a journal may be a blend: the header of a transaction that had
//! ended, before records of the next one (`kept`). Its records' checksums, of every 200th
//! byte, do not tell that (pager.c, pager_cksum); those of the captured pages do.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::database::State;
use super::kept::is_kept;
use super::recover::Tail;
use super::saved::sync_dir;
use super::{Database, DbError, FileKind, ScannedChange};
use crate::sqlite::journal::{self, Playback};
use crate::words::{PageSize, PageSum, Pgno};

/// What a journal that was left said of the transaction that it covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftJournal {
    /// There was none, or one that says nothing.
    None,
    /// Its end was the commit.
    Ended,
    /// It was hot: the transaction is taken back that had this nonce.
    RolledBack(u32),
}

impl Database {
    /// Plays back a hot journal. Its pages are dirty then. `saved` is the nonce of the
    /// last transaction before the tail; `explained`: the log explains what the database
    /// file holds, unless `synchronous=OFF` was at work.
    pub(super) fn recover_journal(
        &self,
        state: &mut State,
        tail: &Tail,
        saved: u32,
        explained: bool,
        super_journal: &dyn Fn(&[u8]) -> bool,
    ) -> Result<LeftJournal, DbError> {
        let path = self.path(FileKind::Journal);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(LeftJournal::None),
            Err(source) => return Err(DbError::io("open", path)(source)),
        };
        let read = || DbError::io("read", path.clone());
        let len = file.metadata().map_err(read())?.len();
        let Some(head) = journal::Header::read(&file).map_err(read())? else {
            let kept = is_kept(&file, len).map_err(read())?;
            // Applications find none.
            self.retired.store(kept, Ordering::Release);
            return Ok(if kept { LeftJournal::None } else { LeftJournal::Ended });
        };
        let mut nonces = tail.committed.iter().map(|change| change.meta.journal).chain([saved]);
        let committed = head.nonce != 0 && nonces.any(|nonce| nonce == head.nonce);
        let named = journal::super_journal(&file, len).map_err(read())?;
        let superseded = named.as_ref().is_some_and(|name| !super_journal(name));
        // Of a transaction over several databases none may decide for itself.
        let explained = explained && named.is_none() && !state.whole && state.page_size == head.page_size;
        let prepared = tail.prepared.as_ref().filter(|prepared| prepared.meta.pre == state.pos);
        let (own, before) = match prepared {
            Some(own) if own.meta.journal == head.nonce => (Some(own), None),
            before => (None, before),
        };
        // With synchronous=OFF the log explains the database as of a transaction's fsync only.
        let explained = explained && (own.is_some() || !state.unsynced);
        let left = if committed || superseded {
            LeftJournal::Ended
        } else if let (true, Some(own)) = (explained, own)
            && !self.takes_back(state, &file, len, own)?
        {
            // The next transaction had begun to overwrite it.
            LeftJournal::Ended
        } else {
            if explained {
                self.play_back_explained(state, &file, len, before)?;
            } else {
                self.play_back(state, &file, len, head.page_size)?;
            }
            LeftJournal::RolledBack(head.nonce)
        };
        self.shared.faults.pass("recover.journal").map_err(DbError::io("remove", &path))?;
        fs::remove_file(&path).map_err(DbError::io("remove", &path))?;
        sync_dir(self.paths.dir()).map_err(DbError::io("sync", self.paths.dir()))?;
        Ok(left)
    }

    fn playback<'a>(
        &self,
        file: &'a File,
        len: u64,
        size: PageSize,
    ) -> Result<Option<Playback<&'a File>>, DbError> {
        Playback::open(file, len, size).map_err(DbError::io("read", self.path(FileKind::Journal)))
    }

    /// Whether a journal is whole, has each page as the database had it at the position, and
    /// with it nothing is lost that the transaction `own` changed: of the pages that it drops
    /// SQLite journals none, but cuts the file only after the commit (pager.c,
    /// pager_end_transaction). (It may have used free leaf pages, which SQLite does not
    /// journal either; it is as well committed then.)
    fn takes_back(
        &self,
        state: &mut State,
        file: &File,
        len: u64,
        own: &ScannedChange,
    ) -> Result<bool, DbError> {
        let Some(size) = state.page_size else { return Ok(false) };
        let Some(mut playback) = self.playback(file, len, size)? else { return Ok(false) };
        let read = || DbError::io("read", self.path(FileKind::Journal));
        let (mut page, mut found) = (Vec::new(), HashSet::new());
        while let Some(record) = playback.next_record(&mut page).map_err(read())? {
            let sum = state.sums.get(record.pgno).map_err(DbError::io("read", self.paths.sums()))?;
            if sum != Some(PageSum::of(record.pgno, &page)) {
                return Ok(false);
            }
            found.insert(record.pgno);
        }
        let kept = if own.meta.page_size == size { own.meta.commit.min(state.pages) } else { 0 };
        let mut changed = own.pages.iter().filter(|(pgno, _)| pgno.get() <= kept);
        let whole = !playback.is_cut() && playback.pages() == state.pages;
        if !whole || !changed.all(|(pgno, _)| found.contains(pgno)) {
            return Ok(false);
        }
        let dropped = (kept.saturating_add(1)..=state.pages).filter_map(Pgno::new);
        let database = self.database_file(state)?;
        for pgno in dropped.filter(|pgno| !found.contains(pgno) && *pgno != size.lock_page()) {
            page.resize(size.len(), 0);
            Self::read_page(&database, size, pgno, &mut page)
                .map_err(DbError::io("read", self.path(FileKind::Database)))?;
            let sum = state.sums.get(pgno).map_err(DbError::io("read", self.paths.sums()))?;
            if sum != Some(PageSum::of(pgno, &page)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Plays back what is as the database had it, after the transaction `before` if that
    /// counts: other pages are none that SQLite had begun to write over.
    fn play_back_explained(
        &self,
        state: &mut State,
        file: &File,
        len: u64,
        before: Option<&ScannedChange>,
    ) -> Result<(), DbError> {
        let newer: HashMap<Pgno, PageSum> =
            before.map(|change| change.pages.iter().copied().collect()).unwrap_or_default();
        let pages = before.map_or(state.pages, |change| change.meta.commit);
        let is_captured = |state: &State, pgno: Pgno, page: &[u8]| {
            let sum = match newer.get(&pgno) {
                Some(sum) => Some(*sum),
                None => state.sums.get(pgno).map_err(DbError::io("read", self.paths.sums()))?,
            };
            Ok(sum == Some(PageSum::of(pgno, page)))
        };
        let Some(size) = state.page_size else { return Ok(()) };
        self.write_back(state, file, len, size, |stated| stated == pages, is_captured)
    }

    /// Plays back all that SQLite would.
    pub(super) fn play_back(
        &self,
        state: &mut State,
        file: &File,
        len: u64,
        stated: Option<PageSize>,
    ) -> Result<(), DbError> {
        let Some(size) = stated.or(state.page_size) else { return Ok(()) };
        self.write_back(state, file, len, size, |_| true, |_, _, _| Ok(true))
    }

    /// Writes back the pages for which `wanted` says so; all in the journal are dirty then.
    /// The file gets the size in pages that the journal states, if it is `sized` so.
    fn write_back(
        &self,
        state: &mut State,
        file: &File,
        len: u64,
        size: PageSize,
        sized: impl Fn(u32) -> bool,
        wanted: impl Fn(&State, Pgno, &[u8]) -> Result<bool, DbError>,
    ) -> Result<(), DbError> {
        let path = self.path(FileKind::Database);
        let database = self.database_file(state)?;
        let Some(mut playback) = self.playback(file, len, size)? else { return Ok(()) };
        let size = playback.page_size();
        let read = || DbError::io("read", self.path(FileKind::Journal));
        let mut page = Vec::new();
        while let Some(record) = playback.next_record(&mut page).map_err(read())? {
            if wanted(state, record.pgno, &page)? {
                let written = database.write_all_at(&page, size.offset_of(record.pgno));
                written.map_err(DbError::io("write", &path))?;
            }
            if state.page_size == Some(size) {
                state.dirty.insert(record.pgno).map_err(DbError::io("write", self.paths.dirty()))?;
            }
        }
        if sized(playback.pages()) {
            let original = u64::from(playback.pages()) * u64::from(size.get());
            database.set_len(original).map_err(DbError::io("truncate", &path))?;
        }
        database.sync_data().map_err(DbError::io("sync", &path))
    }
}
