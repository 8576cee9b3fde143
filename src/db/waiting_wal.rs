//! `storage.durability = "archive"` in WAL mode: the write that completes a transaction's
//! last frame waits until the archive has the transaction. Only after its answer does the
//! writer publish the frames in the wal-index. If it dies in between, the frames count and
//! nobody sees them: they are *ahead*. The daemon then publishes them, as the next writer
//! of the WAL, once the write lock is free. Should another writer have got the lock first,
//! its first page overwrites them: then, before that, what they changed is taken back by a
//! transaction of its own. Either way the database and the chain say the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::database::{Prepared, State, old_sum};
use super::waiting::Waiting;
use super::wal::WalTrack;
use super::{Batch, Database, DbError, Done, FileKind, Kind};
use crate::sqlite::ReadAt;
use crate::sqlite::wal::{
    Authority, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, Transaction, WalHeader, next_transaction,
};
use crate::words::{PageSum, Pgno, Pos};

/// A transaction in the WAL that waits for the archive.
pub(super) struct Frames {
    prepared: Prepared,
    header: WalHeader,
    transaction: Transaction,
}

/// Frames that count and are not published, as they are to be.
pub(super) struct Ahead {
    pub header: WalHeader,
    /// The page of each.
    pub pages: Vec<Pgno>,
    /// Their headers' checksums are to be these, in this order.
    pub headers: Vec<(u64, Vec<u8>)>,
    /// The size of the database with them.
    pub size: u32,
}

impl Frames {
    /// Where the transaction leads.
    pub fn post(&self) -> Pos {
        self.prepared.change.meta.post
    }
}

impl Database {
    /// The wal-index says that so many frames are published.
    pub(super) fn note_published(&self, state: &mut State, frames: u32) {
        if let Some(track) = &mut state.wal {
            track.published = frames;
            self.ahead.store(track.is_ahead(), Ordering::Release);
        }
    }

    /// There is no wal-index but on the heap of a writer in EXCLUSIVE mode, or nobody
    /// there; then the next one makes it from the frames.
    pub(super) fn nobody_publishes(&self, state: &mut State) {
        let all = state.wal.as_ref().map_or(0, |track| track.end.frames);
        self.note_published(state, all);
    }

    /// Whether a write to the WAL overwrites nothing that counts.
    pub fn frames_are_plain(&self) -> bool {
        !self.ahead.load(Ordering::Acquire)
    }

    /// Before a write to the WAL: frames that are ahead, and whose writer died, are taken
    /// back if it overwrites them. Their own writer may still write their headers anew
    /// (wal.c, walRewriteChecksums), but no page.
    pub fn before_frames(&self, offset: u64, len: u64) -> Result<(), DbError> {
        let _one_at_a_time = self.capturing.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.observe(true)?;
        let mut state = self.lock();
        self.capture_frames(&mut state, &seen)?;
        let Some(track) = state.wal.as_ref().filter(|track| track.is_ahead()) else { return Ok(()) };
        let frames = track.published + 1..=track.end.frames;
        let restarts = offset < HEADER_LEN as u64;
        let overwrites = frames.clone().any(|frame| {
            let page = track.header.frame_offset(frame) + FRAME_HEADER_LEN as u64;
            offset < page + track.header.page_size.len() as u64 && page < offset + len
        });
        if restarts || overwrites { self.overtake_ahead(&mut state) } else { Ok(()) }
    }

    /// Somebody is about to destroy what is ahead. Under the halt lock it is the primary's
    /// already: whoever overtakes it fails, and finds it published the next time.
    fn overtake_ahead(&self, state: &mut State) -> Result<(), DbError> {
        if self.is_halted() {
            return Err(DbError::Busy {
                db: self.name.clone(),
                what: "a transaction whose writer died is about to be published".to_owned(),
            });
        }
        self.take_back_ahead(state)
    }

    /// Before the WAL goes or is emptied: nobody can publish what is ahead any more.
    pub(super) fn before_wal_goes(&self) -> Result<(), DbError> {
        if self.frames_are_plain() {
            return Ok(());
        }
        let _one_at_a_time = self.capturing.lock().unwrap_or_else(PoisonError::into_inner);
        self.overtake_ahead(&mut self.lock())
    }

    fn take_back_ahead(&self, state: &mut State) -> Result<(), DbError> {
        let (Some(file), Some(track)) = (self.wal_file(state)?, &state.wal) else { return Ok(()) };
        if track.is_ahead() {
            let published = track.published;
            self.rewind(state, &file, published)?;
        }
        self.ahead.store(false, Ordering::Release);
        Ok(())
    }

    /// The frame that the write completed which ends at byte `end` of the WAL, if it is a
    /// transaction's last. Its page comes after its header. Where the transaction overwrote
    /// frames that a spill had written, SQLite writes the frames after that without salts, and
    /// all their headers anew at the commit (wal.c, walEncodeFrame, walRewriteChecksums): then
    /// it is the header that comes last.
    pub fn completed_frame(&self, end: u64) -> Result<Option<u32>, DbError> {
        let read = || DbError::io("read", self.path(FileKind::Wal));
        let file = self.handle(FileKind::Wal)?;
        let Some(header) = WalHeader::read(&*file).map_err(read())? else { return Ok(None) };
        let Some((frame, part)) = part_that_ends(&header, end) else { return Ok(None) };
        let mut bytes = [0; FRAME_HEADER_LEN];
        let len = file.read_upto(&mut bytes, header.frame_offset(frame)).map_err(read())?;
        let head = bytes.get(..len).and_then(FrameHeader::parse).filter(|head| head.commit != 0);
        let salted = head.as_ref().is_some_and(|head| head.salt == header.salt);
        let last = match part {
            Part::Page => {
                let unsalted = head.is_some_and(|head| head.salt == [0, 0]);
                self.unsalted.store(if unsalted { frame } else { 0 }, Ordering::Release);
                salted
            }
            Part::Header => salted && self.unsalted.load(Ordering::Acquire) == frame,
        };
        Ok(last.then_some(frame))
    }

    /// Hands the transaction to the archive whose last frame is `last`. False if it changes
    /// nothing; `done` is then never called. To be followed by [`Database::conclude`].
    pub fn submit_frames(&self, last: u32, done: Done) -> Result<bool, DbError> {
        let _one_at_a_time = self.capturing.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.observe(true)?;
        let mut state = self.lock();
        self.refuse_while_waiting(&state)?;
        self.capture_frames(&mut state, &seen)?;
        let Some(file) = self.wal_file(&mut state)? else { return Ok(false) };
        let Some(frames) = self.prepare_frames(&mut state, &file, last)? else { return Ok(false) };
        self.shared.faults.pass("archive.submit").map_err(DbError::io("capture", self.paths.dir()))?;
        let committed = frames.prepared.committed();
        state.waiting = Some(Waiting::Frames(Box::new(frames)));
        self.hand_over(committed, done);
        Ok(true)
    }

    fn prepare_frames(&self, state: &mut State, file: &File, last: u32) -> Result<Option<Frames>, DbError> {
        let read = || DbError::io("read", self.path(FileKind::Wal));
        let Some(header) = WalHeader::read(file).map_err(read())? else { return Ok(None) };
        // The salts of a WAL's first generation are in no wal-index before the first commit.
        if state.wal.as_ref().is_none_or(|track| track.header.salt != header.salt) {
            self.restate(state, header.page_size)?;
            state.wal = Some(WalTrack::new(header, header.start(), state.pages));
        }
        let Some(track) = &mut state.wal else { return Ok(None) };
        // The writer may have written the checksums anew since.
        track.end = header.after(file, track.end.frames).map_err(read())?.unwrap_or(track.end);
        let from = track.end;
        let found = next_transaction(file, &header, from, Authority::Index(last));
        let Some(transaction) = found.map_err(|error| self.wal_error(error))? else { return Ok(None) };
        let Some(change) = self.build_frames(state, file, &transaction)? else { return Ok(None) };
        let mut batch = Batch::new();
        change.encode(Kind::Prepared, &mut batch);
        let place = self.shared.log.append(&batch)?.first().copied().unwrap_or_default();
        Ok(Some(Frames { prepared: Prepared { change, place, afresh: false }, header, transaction }))
    }

    /// The archive has it: it counts.
    pub(super) fn enter_frames(&self, state: &mut State, frames: Frames) -> Result<(), DbError> {
        let path = self.path(FileKind::Wal);
        self.shared.faults.pass("archive.archived").map_err(DbError::io("capture", &path))?;
        self.enter_archived(state, &frames.prepared)?;
        if let Some(track) = state.wal.as_mut().filter(|track| track.header.salt == frames.header.salt) {
            track.captured(&frames.transaction);
            self.ahead.store(true, Ordering::Release);
        }
        self.shared.faults.pass("archive.entered").map_err(DbError::io("capture", path))
    }

    /// Its writer is told that it failed: no recovery may find its commit frame.
    pub(super) fn withdraw_frames(&self, state: &mut State, frames: &Frames) -> Result<(), DbError> {
        let path = self.path(FileKind::Wal);
        if let Some(file) = self.wal_file(state)? {
            let at = frames.header.frame_offset(frames.transaction.end.frames);
            file.write_all_at(&[0; FRAME_HEADER_LEN], at).map_err(DbError::io("write", path))?;
        }
        let mut batch = Batch::new();
        batch.commit(&self.name, state.pos);
        self.shared.log.append(&batch)?;
        // After a loss of power nothing else would tell.
        Ok(self.shared.log.sync()?)
    }

    /// What is ahead of the first `published` frames, if all of it is still in the WAL.
    /// The caller holds the write lock: no writer is at work.
    pub(super) fn ahead_of(&self, published: (u32, [u32; 2])) -> Result<Option<Ahead>, DbError> {
        let read = || DbError::io("read", self.path(FileKind::Wal));
        let mut state = self.lock();
        let (Some(file), Some(track)) = (self.wal_file(&mut state)?, &mut state.wal) else { return Ok(None) };
        let header = track.header;
        if track.end.frames <= published.0 || WalHeader::read(&*file).map_err(read())? != Some(header) {
            return Ok(None);
        }
        track.published = published.0;
        let (last, mut left) = (track.end.frames, track.pages_ahead());
        let mut cursor = header.start();
        if published.0 > 0 {
            (cursor.frames, cursor.sum) = published;
        }
        let mut ahead = Ahead { header, pages: Vec::new(), headers: Vec::new(), size: state.pages };
        let mut newest: Vec<(Pgno, PageSum)> = Vec::new();
        let mut frame = vec![0; FRAME_HEADER_LEN + header.page_size.len()];
        for number in published.0 + 1..=last {
            let at = header.frame_offset(number);
            let len = file.read_upto(&mut frame, at).map_err(read())?;
            let (head, page) = frame.split_at(FRAME_HEADER_LEN);
            let Some(found) = FrameHeader::parse(head).filter(|found| found.salt == header.salt) else {
                return Ok(None);
            };
            let mut sound = Vec::new();
            header.append_frame(&mut sound, &mut cursor, (found.pgno, found.commit), page);
            sound.truncate(FRAME_HEADER_LEN);
            if len < frame.len() || (number == last && found.commit != state.pages) {
                return Ok(None);
            }
            if sound != head {
                ahead.headers.push((at, sound));
            }
            newest.retain(|(pgno, _)| *pgno != found.pgno);
            newest.push((found.pgno, PageSum::of(found.pgno, page)));
            ahead.pages.push(found.pgno);
        }
        for (pgno, sum) in newest {
            let there = pgno.get() > state.pages || pgno == header.page_size.lock_page();
            if !there && old_sum(&state.sums, pgno, || self.paths.sums())? != Some(sum) {
                return Ok(None);
            }
            left.remove(&pgno.get());
        }
        Ok(left.is_empty().then_some(ahead))
    }

    /// Notes that everything that counts is published.
    pub(super) fn is_published(&self) {
        self.nobody_publishes(&mut self.lock());
    }

    /// What is ahead cannot be published: it is taken back. The caller holds the write
    /// lock.
    pub(super) fn give_up_ahead(&self) -> Result<(), DbError> {
        self.take_back_ahead(&mut self.lock())
    }
}

enum Part {
    Header,
    Page,
}

/// The number of the frame of which a part ends at byte `end` of a WAL, if one does.
fn part_that_ends(header: &WalHeader, end: u64) -> Option<(u32, Part)> {
    let frames = end.checked_sub(HEADER_LEN as u64)?;
    let number = u32::try_from(frames / header.frame_len()).ok()?;
    match frames % header.frame_len() {
        0 => (number > 0).then_some((number, Part::Page)),
        rest if rest == FRAME_HEADER_LEN as u64 => Some((number.checked_add(1)?, Part::Header)),
        _ => None,
    }
}
