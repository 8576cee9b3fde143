//! Restoring a database: every page once, the newest, on several threads, with flat
//! memory; verified by the checksum of the whole database. Must not decide what
//! becomes of the restored pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::Archive;
use super::error::ArchiveError;
use super::load::in_parallel;
use super::plan::{Plan, Source, Step};
use super::read::{Data, Decoders, Ltx};
use super::sink::{PageSink, Progress, Watch};
use crate::words::{Checksum, PageSum, Pgno};

/// So much of a large object is fetched at once…
const FETCH: u64 = 4 << 20;
/// … and so many bytes that are not wanted are read to save a request.
const GAP: u64 = 128 << 10;
/// So many pages in memory are one piece of work.
const PAGES: usize = 256;
/// So many bytes of pages that follow each other are written at once.
const RUN: usize = 1 << 20;
/// Steps are read ahead up to so many bytes.
const AHEAD: u64 = 64 << 20;

/// Frames of one LTX to be decoded.
struct Work {
    ltx: Arc<Ltx>,
    /// Page, offset in the LTX, length: ascending and within `FETCH` of each other.
    frames: Vec<(Pgno, u64, u64)>,
}

/// Decoded pages that follow each other, on their way to the sink.
#[derive(Default)]
struct Buffers {
    pages: Vec<u8>,
    sums: Vec<PageSum>,
}

/// What the threads share.
struct Shared<'a> {
    archive: &'a Archive,
    sink: &'a dyn PageSink,
    watch: &'a dyn Watch,
    total: u64,
    pages: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
    result: Mutex<(Checksum, Option<ArchiveError>)>,
}

impl Archive {
    /// Gives every page that the plan leads to, each once, to `sink`, from several
    /// threads and in no order. Without a base all pages are given and the checksum
    /// of the database is verified; with a base those that may have changed since
    /// it, and the caller compares checksums.
    ///
    /// # Errors
    /// `is_outdated` errors: read the head and plan again. The sink's content is of
    /// no use after an error.
    pub fn restore(&self, plan: &Plan, sink: &dyn PageSink, watch: &dyn Watch) -> Result<(), ArchiveError> {
        let total = u64::from(plan.commit);
        let shared = Shared {
            archive: self,
            sink,
            watch,
            total,
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            result: Mutex::new((Checksum::EMPTY, None)),
        };
        let threads = (self.options.parallel / 2).clamp(2, 16);
        let (sender, receiver) = bounded(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (shared, receiver) = (&shared, receiver.clone());
                scope.spawn(move || shared.work(&receiver));
            }
            drop(receiver);
            let mut select = Select::new(plan);
            if let Err(error) = shared.distribute(plan, &mut select, sender).and_then(|()| select.check(plan))
            {
                shared.fail(error);
            }
        });
        let (found, error) = shared.result.into_inner();
        match error {
            Some(error) => Err(error),
            None if plan.base.is_none() && found != plan.pos.checksum => Err(ArchiveError::Checksum {
                db: plan.db.clone(),
                txid: plan.pos.txid,
                expected: plan.pos.checksum,
                found,
            }),
            None => Ok(()),
        }
    }

    /// The change sets of the plan's steps, the newest step first, loaded ahead in
    /// groups; `each` says whether it wants more.
    pub(super) fn load_newest_first(
        &self,
        steps: &[Step],
        mut each: impl FnMut(Ltx) -> Result<bool, ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let mut rest: &[Step] = steps;
        while !rest.is_empty() {
            let mut size = 0;
            let count = rest.iter().rev().take_while(|step| {
                let is_object = matches!(step.source, Source::Object { .. });
                let held = if is_object { step.size.min(FETCH) } else { step.size };
                let fits = size == 0 || size + held <= AHEAD;
                size += held;
                fits
            });
            let (older, group) = rest.split_at(rest.len() - count.count());
            for loaded in in_parallel(self.options.parallel, group, |step| self.load(step)).into_iter().rev()
            {
                for ltx in loaded?.into_iter().rev() {
                    if !each(ltx)? {
                        return Ok(());
                    }
                }
            }
            rest = older;
        }
        Ok(())
    }
}

/// Which pages are still to be found.
pub(super) struct Select {
    commit: u32,
    page_size: crate::words::PageSize,
    seen: Vec<u64>,
    missing: u64,
}

impl Select {
    pub(super) fn new(plan: &Plan) -> Select {
        let lock = u64::from(plan.commit >= plan.page_size.lock_page().get());
        Select {
            commit: plan.commit,
            page_size: plan.page_size,
            seen: vec![0; plan.commit as usize / 64 + 1],
            missing: u64::from(plan.commit) - lock,
        }
    }

    /// Whether page `pgno` is wanted and was not taken before; it is taken now.
    pub(super) fn take(&mut self, pgno: Pgno) -> bool {
        let at = pgno.get() as usize;
        let Some(word) = self.seen.get_mut(at / 64) else { return false };
        let bit = 1 << (at % 64);
        if pgno.get() > self.commit || *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.missing = self.missing.saturating_sub(1);
        true
    }

    /// Whether anything older than `ltx` still matters.
    pub(super) fn goes_on(&self, ltx: &Ltx) -> bool {
        self.missing > 0 && !ltx.change.is_full()
    }

    pub(super) fn fits(&self, ltx: &Ltx) -> Result<(), ArchiveError> {
        if ltx.header.page_size == self.page_size {
            return Ok(());
        }
        Err(ArchiveError::damaged(&ltx.key, format!("it has another page size than {}", self.page_size)))
    }

    /// Without a base every page must have been found.
    fn check(&self, plan: &Plan) -> Result<(), ArchiveError> {
        if plan.base.is_some() || self.missing == 0 {
            return Ok(());
        }
        let lock = plan.page_size.lock_page();
        let found = |pgno: &Pgno| {
            let word = self.seen.get(pgno.get() as usize / 64).copied().unwrap_or(0);
            word & (1 << (pgno.get() % 64)) != 0
        };
        match Pgno::up_to(plan.commit).find(|pgno| *pgno != lock && !found(pgno)) {
            Some(pgno) => Err(ArchiveError::MissingPage { db: plan.db.clone(), pgno }),
            None => Ok(()),
        }
    }
}

impl Shared<'_> {
    fn fail(&self, error: ArchiveError) {
        self.stop.store(true, Ordering::Relaxed);
        self.result.lock().1.get_or_insert(error);
    }

    /// Finds the newest frame of every page and hands the frames out.
    fn distribute(&self, plan: &Plan, select: &mut Select, sender: Sender<Work>) -> Result<(), ArchiveError> {
        self.archive.load_newest_first(&plan.steps, |ltx| {
            select.fits(&ltx)?;
            let ltx = Arc::new(ltx);
            let in_memory = matches!(ltx.data, Data::Memory(_));
            let mut frames: Vec<(Pgno, u64, u64)> = Vec::new();
            let send =
                |frames: Vec<_>| frames.is_empty() || sender.send(Work { ltx: ltx.clone(), frames }).is_ok();
            for frame in ltx.index.iter().filter(|(pgno, ..)| select.take(*pgno)) {
                let begin = frames.first().map_or(frame.1, |first| first.1);
                let end = frames.last().map_or(frame.1, |last| last.1 + last.2);
                let full = if in_memory {
                    frames.len() >= PAGES
                } else {
                    frame.1 + frame.2 - begin > FETCH || frame.1 - end > GAP
                };
                if full && !send(std::mem::take(&mut frames)) {
                    return Ok(false);
                }
                frames.push(frame);
            }
            let sent = send(frames);
            Ok(sent && !self.stop.load(Ordering::Relaxed) && select.goes_on(&ltx))
        })
    }

    fn work(&self, receiver: &Receiver<Work>) {
        let mut sum = Checksum::EMPTY;
        let (mut decoders, mut buffers) = (Decoders::default(), Buffers::default());
        // The queue is emptied even after a failure, so that the sender never waits.
        for work in receiver {
            if self.stop.load(Ordering::Relaxed) {
                continue;
            }
            match self.decode(&work, &mut decoders, &mut buffers) {
                Ok(pages) => sum = xor(sum, pages),
                Err(error) => self.fail(error),
            }
        }
        let mut result = self.result.lock();
        result.0 = xor(result.0, sum);
    }

    fn decode(
        &self,
        work: &Work,
        decoders: &mut Decoders,
        buffers: &mut Buffers,
    ) -> Result<Checksum, ArchiveError> {
        let (Some(first), Some(last)) = (work.frames.first(), work.frames.last()) else {
            return Ok(Checksum::EMPTY);
        };
        let ltx = &work.ltx;
        let (bytes, base): (Bytes, u64) = match &ltx.data {
            Data::Memory(bytes) => (bytes.clone(), 0),
            Data::Remote { .. } => {
                let len = last.1 + last.2 - first.1;
                (self.archive.store.get_range(&ltx.key, first.1, len)?, first.1)
            }
        };
        let decoder = decoders.of(&ltx.header);
        let size = ltx.header.page_size.len();
        let mut sum = Checksum::EMPTY;
        let mut read = 0;
        let mut rest: &[(Pgno, u64, u64)] = &work.frames;
        while !rest.is_empty() {
            let (run, after) = rest.split_at(run_len(rest, size));
            rest = after;
            buffers.pages.resize(run.len() * size, 0);
            buffers.sums.clear();
            for (&(pgno, offset, len), page) in run.iter().zip(buffers.pages.chunks_exact_mut(size)) {
                let frame = frame(&bytes, offset - base, len)
                    .ok_or_else(|| ArchiveError::damaged(&ltx.key, "it ends before its end"))?;
                decoder.decode_into(pgno, frame, page).map_err(ArchiveError::ltx(&ltx.key))?;
                let page_sum = PageSum::of(pgno, page);
                sum = sum.toggle(page_sum);
                buffers.sums.push(page_sum);
                read += len;
            }
            let first = run.first().map_or(Pgno::FIRST, |first| first.0);
            let attempt = format_args!("writing the restored database from page {first} on");
            self.sink.run(first, &buffers.pages, &buffers.sums).map_err(ArchiveError::local(attempt))?;
        }
        let pages =
            self.pages.fetch_add(work.frames.len() as u64, Ordering::Relaxed) + work.frames.len() as u64;
        let bytes = self.bytes.fetch_add(read, Ordering::Relaxed) + read;
        if !self.watch.progress(Progress { pages, total: self.total, bytes }) {
            return Err(ArchiveError::Cancelled);
        }
        Ok(sum)
    }
}

/// How many of these frames, at least one, are of pages that follow each other.
fn run_len(frames: &[(Pgno, u64, u64)], page_size: usize) -> usize {
    let follow = frames.windows(2).take_while(|pair| match pair {
        [(a, ..), (b, ..)] => b.get() - a.get() == 1,
        _ => false,
    });
    let most = (RUN / page_size).max(1);
    (follow.count() + 1).min(most).min(frames.len())
}

/// `len` bytes from `offset` on.
pub(super) fn frame(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let begin = usize::try_from(offset).ok()?;
    bytes.get(begin..begin.checked_add(usize::try_from(len).ok()?)?)
}

/// The checksum of two sets of pages together.
fn xor(a: Checksum, b: Checksum) -> Checksum {
    PageSum::from_stored(b.get()).map_or(a, |b| a.toggle(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_a_page_is_missing_and_where_it_is_long() {
        let frames = |pages: &[u32]| -> Vec<(Pgno, u64, u64)> {
            pages.iter().map(|pgno| (Pgno::new(*pgno).expect("not zero"), 0, 0)).collect()
        };
        assert_eq!(run_len(&frames(&[3, 4, 5, 7, 8]), 4096), 3);
        assert_eq!(run_len(&frames(&[7]), 4096), 1);
        let long: Vec<u32> = (1..=1000).collect();
        assert_eq!(run_len(&frames(&long), 4096), RUN / 4096);
        assert_eq!(run_len(&frames(&long), 65536), RUN / 65536);
    }
}
