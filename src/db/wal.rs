//! Capture in WAL mode. A commit is what the wal-index publishes, not a commit frame
//! on disk: a writer killed in between leaves frames that the next one overwrites, and
//! SQLite 3.40.1 breaks the chain of checksums after a spilled ROLLBACK TO. The chain
//! decides only where no application has a wal-index (EXCLUSIVE mode, or nobody there).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::change::{Builder, Change, Facts};
use super::database::{State, old_sum};
use super::group::{ALONE, Built, Group, Merged, SCRATCH, Scratch, holes};
use super::log::{Batch, WalEnd};
use super::{Captured, Database, DbError, FileKind, Place, WalIndex};
use crate::sqlite::wal::{
    Authority, Cursor, FRAME_HEADER_LEN, FrameHeader, Frames, Transaction, WalError, WalHeader,
};
use crate::sqlite::{ReadAt, wal_index};
use crate::words::Pgno;

/// One generation of a WAL (between two restarts) as far as it was captured.
pub(super) struct WalTrack {
    pub header: WalHeader,
    pub end: Cursor,
    /// How many frames the wal-index published when it was last seen; less than captured
    /// only where a commit counts before its writer publishes it.
    pub published: u32,
    /// Size in pages before the first transaction.
    base: u32,
    transactions: Vec<Captive>,
    /// Where the log has the transactions of this generation.
    places: Vec<Place>,
    pages: HashSet<u32>,
}

/// A captured transaction: its last frame, the size after it, its pages.
pub(super) struct Captive {
    end: u32,
    commit: u32,
    pages: Vec<u32>,
}

impl Captive {
    pub fn of(transaction: &Transaction) -> Captive {
        let pages = transaction.pages.iter().map(|(pgno, _)| pgno.get()).collect();
        Captive { end: transaction.end.frames, commit: transaction.commit, pages }
    }
}

/// What the mount said before a capture.
pub(super) struct Observation {
    /// A process holds the write lock.
    locked: bool,
    /// The wal-index; `Some(None)`: no application has one; `None`: it cannot be
    /// believed now.
    index: Option<Option<wal_index::WalIndex>>,
}

impl WalTrack {
    pub fn new(header: WalHeader, end: Cursor, base: u32) -> WalTrack {
        WalTrack {
            header,
            end,
            published: end.frames,
            base,
            transactions: Vec::new(),
            places: Vec::new(),
            pages: HashSet::new(),
        }
    }

    /// Notes where the log has a transaction of this generation.
    pub fn place(&mut self, place: Place) {
        self.places.push(place);
    }

    /// Where the log has what the database file may lack.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Notes a transaction that was captured.
    pub fn captured(&mut self, transaction: &Transaction) {
        let pages = transaction.pages.iter().map(|(pgno, _)| pgno.get()).collect();
        self.note(transaction.end, transaction.commit, pages);
    }

    /// Notes transactions that were captured, the last of which ends at `end`.
    pub fn captured_together(&mut self, end: Cursor, captives: Vec<Captive>) {
        self.end = end;
        self.pages.extend(captives.iter().flat_map(|captive| captive.pages.iter().copied()));
        self.transactions.extend(captives);
    }

    /// Notes a transaction that the daemon appended.
    pub fn applied(&mut self, end: Cursor, commit: u32, pages: &[Pgno]) {
        self.note(end, commit, pages.iter().map(|pgno| pgno.get()).collect());
        self.published = end.frames;
    }

    fn note(&mut self, end: Cursor, commit: u32, pages: Vec<u32>) {
        self.end = end;
        self.pages.extend(pages.iter().copied());
        self.transactions.push(Captive { end: end.frames, commit, pages });
    }

    /// Whether frames were captured that nobody has published.
    pub fn is_ahead(&self) -> bool {
        self.published < self.end.frames
    }

    /// The pages of the transactions that nobody has published.
    pub fn pages_ahead(&self) -> BTreeSet<u32> {
        let ahead = self.transactions.iter().filter(|captive| captive.end > self.published);
        ahead.flat_map(|captive| captive.pages.iter().copied()).collect()
    }

    /// Whether a captured frame holds this page: a write of it to the database file
    /// is a checkpoint's.
    pub fn has(&self, pgno: Pgno) -> bool {
        self.pages.contains(&pgno.get())
    }
}

/// How long a barrier waits for a wal-index header that is being written: a publish
/// is two copies of 48 bytes.
const TORN_TRIES: u32 = 10_000;

impl Database {
    /// The WAL, if there is one.
    pub(super) fn wal_file(&self, state: &mut State) -> Result<Option<Arc<File>>, DbError> {
        if state.wal_file.is_none() {
            match OpenOptions::new().read(true).write(true).open(self.path(FileKind::Wal)) {
                Ok(file) => state.wal_file = Some(Arc::new(file)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(DbError::io("open", self.path(FileKind::Wal))(source)),
            }
        }
        Ok(state.wal_file.clone())
    }

    /// Captures what was committed through the WAL. A `barrier` comes before frames
    /// can go: it does not ask whether a writer is at work. The mount is asked before
    /// the state is locked, since its answers may need a thread that waits for it.
    pub(super) fn capture_wal(&self, barrier: bool) -> Result<Captured, DbError> {
        let _one_at_a_time = self.capturing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.held.load(Ordering::Acquire) {
            // What comes from here on was applied.
            return Ok(Captured::Settled);
        }
        let ahead = loop {
            let opens = self.lock().shm_opens;
            let seen = self.observe(barrier)?;
            let mut state = self.lock();
            if state.shm_opens != opens {
                // Whoever opened the wal-index meanwhile may have written since.
                continue;
            }
            self.capture_frames(&mut state, &seen)?;
            if seen.locked {
                // Whoever waits for the archive tells when the wait is over.
                return Ok(if state.waiting.is_some() { Captured::Settled } else { Captured::Again });
            }
            break self.archive_first() && state.wal.as_ref().is_some_and(WalTrack::is_ahead);
        };
        if ahead && !barrier {
            return self.roll_forward();
        }
        Ok(Captured::Settled)
    }

    /// What the mount says of the wal-index now.
    pub(super) fn observe(&self, barrier: bool) -> Result<Observation, DbError> {
        let Some(own) = self.shared.own() else {
            return Ok(Observation { locked: false, index: Some(None) });
        };
        let shm = || self.path(FileKind::Shm);
        // Asked first: a lock that is free before the header is read makes the header
        // final for this wake-up.
        let locked =
            !barrier && own.wal_write_locked(&self.name).map_err(DbError::io("ask for locks of", shm()))?;
        for _ in 0..TORN_TRIES {
            let bytes = match own.wal_index(&self.name).map_err(DbError::io("read", shm()))? {
                WalIndex::Unused => return Ok(Observation { locked, index: Some(None) }),
                WalIndex::Used(bytes) => bytes,
            };
            match wal_index::WalIndex::parse(&bytes[..]) {
                Ok(index) => return Ok(Observation { locked, index: Some(Some(index)) }),
                Err(wal_index::Unusable::Torn | wal_index::Unusable::Checksum) if barrier => {
                    std::thread::yield_now()
                }
                Err(_) => break,
            }
        }
        Ok(Observation { locked, index: None })
    }

    pub(super) fn capture_frames(&self, state: &mut State, seen: &Observation) -> Result<(), DbError> {
        let path = self.path(FileKind::Wal);
        let Some(file) = self.wal_file(state)? else { return Ok(()) };
        let Some(header) = WalHeader::read(&*file).map_err(DbError::io("read", &path))? else {
            state.wal = None;
            return Ok(());
        };
        let authority = match seen.index {
            // Where a commit counts only once the archive has it, each was seen when its
            // last frame was written.
            Some(None) if self.archive_first() => {
                self.nobody_publishes(state);
                return Ok(());
            }
            Some(None) if !state.wal_sealed => Authority::Chain,
            Some(Some(index)) if index.salt == header.salt => Authority::Index(index.frames),
            // The wal-index and the WAL speak of different generations, or nobody will
            // publish more of this one.
            _ => return Ok(()),
        };
        if state.wal.as_ref().is_none_or(|track| track.header.salt != header.salt) {
            self.restate(state, header.page_size)?;
            state.wal = Some(WalTrack::new(header, header.start(), state.pages));
        }
        match authority {
            Authority::Index(frames) if !self.archive_first() => self.rewind(state, &file, frames)?,
            // What counts before it is published is not taken back for that.
            Authority::Index(frames) => self.note_published(state, frames),
            Authority::Chain => {}
        }
        self.capture_new(state, &file, &header, authority)
    }

    pub(super) fn wal_error(&self, error: WalError) -> DbError {
        match error {
            WalError::Read { source, .. } => DbError::io("read", self.path(FileKind::Wal))(source),
            contradiction => self.damaged(format!(
                "{contradiction}; close the applications that use it, and start the node again"
            )),
        }
    }

    /// Captures what is committed in the WAL after what was captured.
    pub(super) fn capture_new(
        &self,
        state: &mut State,
        file: &File,
        header: &WalHeader,
        authority: Authority,
    ) -> Result<(), DbError> {
        let Some(track) = &state.wal else { return Ok(()) };
        let mut scratch = SCRATCH.take();
        let mut frames = Frames::new(file, header, std::mem::take(&mut scratch.frames));
        let mut group = Group::new(track.end, state.pos, state.pages, std::mem::take(&mut scratch.batch));
        let captured = self.capture_groups(state, file, &mut frames, authority, &mut group);
        scratch = Scratch { frames: frames.into_buffer(), batch: group.batch };
        SCRATCH.set(scratch);
        captured
    }

    fn capture_groups(
        &self,
        state: &mut State,
        file: &File,
        frames: &mut Frames<'_, File>,
        authority: Authority,
        group: &mut Group,
    ) -> Result<(), DbError> {
        let size = frames.header().page_size;
        let (mut found, mut end) = (0, group.end);
        let mut waiting: Option<Merged> = None;
        let failed = loop {
            let next = match frames.next(end, authority) {
                Ok(Some(next)) => next,
                Ok(None) => break None,
                Err(error) => break Some(self.wal_error(error)),
            };
            end = next.end;
            found += 1;
            let next = match &mut waiting {
                Some(before) if found > ALONE => before.add(next, size),
                _ => Some(next),
            };
            if let Some(next) = next
                && let Some(before) = waiting.replace(Merged::new(next))
            {
                self.add_to_group(state, file, frames, before, group)?;
            }
        };
        // What was found before a failure is as good as without it.
        if let Some(before) = waiting {
            self.add_to_group(state, file, frames, before, group)?;
        }
        self.append_group(state, group)?;
        failed.map_or(Ok(()), Err)
    }

    /// Builds a change set; appends the group where it is full, or after a failure, which
    /// what was built before does not share.
    fn add_to_group(
        &self,
        state: &mut State,
        file: &File,
        frames: &Frames<'_, File>,
        merged: Merged,
        group: &mut Group,
    ) -> Result<(), DbError> {
        let built = self.build_transaction(state, file, frames, merged, group);
        if group.is_full() || built.is_err() {
            self.append_group(state, group)?;
        }
        built
    }

    /// Adds what becomes one change set to the group.
    fn build_transaction(
        &self,
        state: &mut State,
        file: &File,
        frames: &Frames<'_, File>,
        merged: Merged,
        group: &mut Group,
    ) -> Result<(), DbError> {
        let transactions = merged.captives.len() as u64;
        let change = self.build_change(state, file, frames, (&merged.transaction, transactions), group)?;
        group.add(merged, change);
        Ok(())
    }

    /// The change set of a transaction in the WAL; `None` if it changes nothing.
    pub(super) fn build_frames(
        &self,
        state: &mut State,
        file: &File,
        transaction: &Transaction,
    ) -> Result<Option<Change>, DbError> {
        let Some((header, end)) = state.wal.as_ref().map(|track| (track.header, track.end)) else {
            return Ok(None);
        };
        let frames = Frames::new(file, &header, Vec::new());
        let group = Group::new(end, state.pos, state.pages, Batch::new());
        self.build_change(state, file, &frames, (transaction, 1), &group)
    }

    /// The change set of so many transactions, after those of the group; `None` if they
    /// change nothing.
    fn build_change(
        &self,
        state: &mut State,
        file: &File,
        frames: &Frames<'_, File>,
        (transaction, transactions): (&Transaction, u64),
        group: &Group,
    ) -> Result<Option<Change>, DbError> {
        let path = || self.path(FileKind::Wal);
        self.shared.faults.pass("capture.wal").map_err(|error| DbError::io("capture", path())(error))?;
        let Some(track) = &state.wal else { return Ok(None) };
        let (header, size) = (track.header, track.header.page_size);
        let mut builder = Builder::new(&self.shared, group.pos.checksum, size);
        let mut page = Vec::new();
        let holes = holes(group.pages, transaction, size);
        let mut all: Vec<(Pgno, Option<u64>)> =
            transaction.pages.iter().map(|(pgno, offset)| (*pgno, Some(*offset))).collect();
        if !holes.is_empty() {
            all.extend(holes.into_iter().map(|pgno| (pgno, None)));
            all.sort_unstable();
        }
        for (pgno, offset) in all {
            let old = group.old_sum(&state.sums, pgno, || self.paths.sums())?;
            let content = match offset.map(|offset| (offset, frames.page(offset))) {
                Some((_, Some(content))) => content,
                Some((offset, None)) => {
                    page.resize(size.len(), 0);
                    file.read_exact_at(&mut page, offset)
                        .map_err(|error| DbError::io("read", path())(error))?;
                    &page
                }
                None => {
                    page.resize(size.len(), 0);
                    let database = self.database_file(state)?;
                    Self::read_page(&database, size, pgno, &mut page)
                        .map_err(DbError::io("read", self.path(FileKind::Database)))?;
                    &page
                }
            };
            builder.page(pgno, old, content)?;
        }
        for pgno in (transaction.commit.saturating_add(1)..=group.pages).filter_map(Pgno::new) {
            builder.remove(group.old_sum(&state.sums, pgno, || self.paths.sums())?);
        }
        let end = transaction.end;
        let facts = Facts {
            db: self.name.clone(),
            pre: group.pos,
            commit: transaction.commit,
            timestamp: self.shared.clock.now(),
            wal: Some(WalEnd { salt: header.salt, frame: end.frames, sum: end.sum }),
            journal: 0,
        };
        builder.finish_several(facts, transactions, group.pages)
    }

    /// Appends the group's change sets to the log, in one write, and enters them.
    fn append_group(&self, state: &mut State, group: &mut Group) -> Result<(), DbError> {
        let built = std::mem::take(&mut group.built);
        let appended =
            if group.batch.is_empty() { Ok(Vec::new()) } else { self.shared.log.append(&group.batch) };
        group.batch.clear();
        group.sums.clear();
        let mut places = appended?.into_iter();
        for Built { merged, change } in built {
            if let Some(change) = change {
                self.enter(state, &change, places.next().unwrap_or_default(), false);
            }
            if let Some(track) = &mut state.wal {
                track.captured_together(merged.transaction.end, merged.captives);
            }
        }
        Ok(())
    }

    /// SQLite's own recovery may publish fewer frames than were committed before (a
    /// chain that 3.40.1 broke): what it took back becomes a transaction of its own.
    pub(super) fn rewind(&self, state: &mut State, file: &File, frames: u32) -> Result<(), DbError> {
        let Some(track) = state.wal.as_mut().filter(|track| frames < track.end.frames) else { return Ok(()) };
        let header = track.header;
        let keep = track.transactions.partition_point(|captive| captive.end <= frames);
        let lost: BTreeSet<u32> =
            track.transactions.drain(keep..).flat_map(|captive| captive.pages).collect();
        let commit = track.transactions.last().map_or(track.base, |captive| captive.commit);
        let after = header.after(file, frames).map_err(DbError::io("read", self.path(FileKind::Wal)))?;
        track.end = after.ok_or_else(|| self.damaged("the wal is shorter than the wal-index says"))?;
        track.pages = track.transactions.iter().flat_map(|captive| captive.pages.iter().copied()).collect();
        let end = track.end;
        tracing::warn!(db = %self.name, frames, "sqlite took back transactions of the wal: captured as a new one");
        let offsets = self.frame_offsets(file, &header, frames)?;
        let database = self.database_file(state)?;
        let mut builder = Builder::new(&self.shared, state.pos.checksum, header.page_size);
        let mut page = vec![0; header.page_size.len()];
        let grown = state.pages.saturating_add(1)..=commit;
        let pages: BTreeSet<u32> = lost.into_iter().chain(grown).filter(|pgno| *pgno <= commit).collect();
        for pgno in pages.into_iter().filter_map(Pgno::new) {
            match offsets.get(&pgno.get()) {
                Some(offset) => file
                    .read_exact_at(&mut page, *offset)
                    .map_err(DbError::io("read", self.path(FileKind::Wal)))?,
                None => Self::read_page(&database, header.page_size, pgno, &mut page)
                    .map_err(DbError::io("read", self.path(FileKind::Database)))?,
            }
            builder.page(pgno, old_sum(&state.sums, pgno, || self.paths.sums())?, &page)?;
        }
        for pgno in (commit.saturating_add(1)..=state.pages).filter_map(Pgno::new) {
            builder.remove(old_sum(&state.sums, pgno, || self.paths.sums())?);
        }
        let facts = Facts {
            db: self.name.clone(),
            pre: state.pos,
            commit,
            timestamp: self.shared.clock.now(),
            wal: Some(WalEnd { salt: header.salt, frame: end.frames, sum: end.sum }),
            journal: 0,
        };
        match builder.finish(facts, state.pages)? {
            Some(change) => self.commit_change(state, &change, false),
            None => Ok(()),
        }
    }

    /// The newest content of each page in the first `frames` frames.
    pub(super) fn frame_offsets(
        &self,
        file: &File,
        header: &WalHeader,
        frames: u32,
    ) -> Result<HashMap<u32, u64>, DbError> {
        let mut offsets = HashMap::new();
        for frame in 1..=frames {
            let at = header.frame_offset(frame);
            let mut bytes = [0; FRAME_HEADER_LEN];
            let len =
                file.read_upto(&mut bytes, at).map_err(DbError::io("read", self.path(FileKind::Wal)))?;
            if let Some(frame) = FrameHeader::parse(&bytes[..len]).filter(|frame| frame.salt == header.salt) {
                offsets.insert(frame.pgno.get(), at + FRAME_HEADER_LEN as u64);
            }
        }
        Ok(offsets)
    }
}
