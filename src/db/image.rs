//! A consistent copy of a whole database while applications go on: the file is
//! copied as it comes, then what the log says happened meanwhile is written over it,
//! and the checksum of the result must be the position's. Writers wait at most for
//! the copying of pages that an open transaction touched.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::change::{Builder, Facts};
use super::database::State;
use super::{Database, DbError, FileKind, Place};
use crate::sqlite::{freelist, header};
use crate::words::{Checksum, PageSize, PageSum, Pgno, Pos};

/// A whole database at one position, in an unlinked temporary file.
#[derive(Debug)]
pub struct Image {
    /// The position.
    pub pos: Pos,
    /// The page size.
    pub page_size: PageSize,
    /// The size in pages.
    pub pages: u32,
    /// The content, exactly `pages` pages.
    pub file: File,
}

/// What happens to a database while it is being copied.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub commits: Vec<Place>,
    pub written: BTreeSet<Pgno>,
}

/// How often, and how long apart, an open transaction is waited for.
const TRIES: u32 = 6000;
const PAUSE: Duration = Duration::from_millis(5);

impl Database {
    /// A copy of the database at a position at or after the current one; `None` for
    /// one without transactions, or dropped. The temporary file is made in `dir`.
    pub fn image(&self, dir: &Path) -> Result<Option<Image>, DbError> {
        let _one_at_a_time = self.imaging.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.capture()?;
        let temp = tempfile_in(dir).map_err(DbError::io("create a temporary file in", dir))?;
        let Some(source) = self.start_recording()? else { return Ok(None) };
        let copied = copy(&source, &temp).map_err(DbError::io("copy", self.path(FileKind::Database)));
        let image = copied.and_then(|()| self.complete(&source, temp));
        self.lock().recorder = None;
        image
    }

    fn start_recording(&self) -> Result<Option<std::sync::Arc<File>>, DbError> {
        let mut state = self.lock();
        if !state.exists || state.pages == 0 {
            return Ok(None);
        }
        let commits = state.wal.as_ref().map(|track| track.places().to_vec()).unwrap_or_default();
        state.recorder = Some(Recorder { commits, written: state.dirty.pages().clone() });
        Ok(Some(self.database_file(&mut state)?))
    }

    fn complete(&self, source: &File, temp: File) -> Result<Option<Image>, DbError> {
        let mut state = self.quiet()?;
        let recorder = state.recorder.take().unwrap_or_default();
        let (Some(size), pos, pages) = (state.page_size, state.pos, state.pages) else { return Ok(None) };
        if pages == 0 {
            return Ok(None);
        }
        let mut page = vec![0; size.len()];
        for pgno in recorder.written {
            Self::read_page(source, size, pgno, &mut page)
                .map_err(DbError::io("read", self.path(FileKind::Database)))?;
            temp.write_all_at(&page, size.offset_of(pgno)).map_err(DbError::io("write", "an image"))?;
        }
        drop(state);
        for place in recorder.commits {
            self.overlay(&temp, place)?;
        }
        temp.set_len(u64::from(pages) * u64::from(size.get()))
            .map_err(DbError::io("truncate", "an image"))?;
        let image = Image { pos, page_size: size, pages, file: temp };
        if image.checksum().map_err(DbError::io("read", "an image"))? == pos.checksum {
            return Ok(Some(image));
        }
        self.mend(image).map(Some)
    }

    /// The state at a moment when no transaction is open.
    fn quiet(&self) -> Result<std::sync::MutexGuard<'_, State>, DbError> {
        for _ in 0..TRIES {
            let mut state = self.lock();
            self.settle_rollback(&mut state)?;
            if state.dirty.is_empty() && state.prepared.is_none() {
                return Ok(state);
            }
            drop(state);
            std::thread::sleep(PAUSE);
        }
        Err(DbError::Busy {
            db: self.name.clone(),
            what: "a transaction stays open; try again when it has ended".into(),
        })
    }

    fn overlay(&self, temp: &File, place: Place) -> Result<(), DbError> {
        let stored = self.shared.log.read(place)?;
        let mut page = Vec::new();
        for (index, (pgno, _)) in stored.pages.iter().enumerate() {
            stored.page(index, &mut page)?;
            temp.write_all_at(&page, stored.meta.page_size.offset_of(*pgno))
                .map_err(DbError::io("write", "an image"))?;
        }
        Ok(())
    }

    /// Free leaf pages may hold bytes that were never captured: SQLite changes them
    /// without a journal, and a crash takes back the transaction but not them. They
    /// become a transaction. Anything else that differs is damage.
    fn mend(&self, image: Image) -> Result<Image, DbError> {
        let mut state = self.quiet()?;
        if state.pos != image.pos {
            let what = "it changed while a copy was being checked; try again".to_owned();
            return Err(DbError::Busy { db: self.name.clone(), what });
        }
        let size = image.page_size;
        let read = |pgno: Pgno, page: &mut [u8]| Self::read_page(&image.file, size, pgno, page);
        let mut page = vec![0; size.len()];
        let leaves = free_leaves(&image).ok_or_else(|| self.damaged("its header cannot be read"))?;
        let mut builder = Builder::new(&self.shared, state.pos.checksum, size);
        for pgno in Pgno::up_to(image.pages).filter(|pgno| *pgno != size.lock_page()) {
            read(pgno, &mut page).map_err(DbError::io("read", "an image"))?;
            let stated = state.sums.get(pgno).map_err(DbError::io("read", self.paths.sums()))?;
            if stated != Some(PageSum::of(pgno, &page)) && !leaves.is_leaf(pgno) {
                return Err(self.damaged(format!(
                    "page {pgno} is not what was captured: the disk changed it, or somebody wrote to {} behind the \
                     mount; restore from the archive",
                    self.path(FileKind::Database).display()
                )));
            }
            builder.page(pgno, stated, &page)?;
        }
        let facts = Facts {
            db: self.name.clone(),
            pre: state.pos,
            commit: image.pages,
            timestamp: self.shared.clock.now(),
            wal: None,
            journal: 0,
        };
        if let Some(change) = builder.finish(facts, image.pages)? {
            self.commit_change(&mut state, &change, false)?;
        }
        let image = Image { pos: state.pos, ..image };
        drop(state);
        if image.checksum().map_err(DbError::io("read", "an image"))? == image.pos.checksum {
            return Ok(image);
        }
        Err(self.damaged("its page checksums do not add up to its position's; restore from the archive"))
    }
}

impl Image {
    /// The checksum of the content.
    fn checksum(&self) -> std::io::Result<Checksum> {
        let mut checksum = Checksum::EMPTY;
        let size = self.page_size.len();
        let per_read = (1 << 20) / size;
        let mut buffer = vec![0; per_read * size];
        let mut next = 1;
        while next <= self.pages {
            let count = per_read.min((self.pages - next + 1) as usize);
            let part = &mut buffer[..count * size];
            self.file.read_exact_at(part, u64::from(next - 1) * size as u64)?;
            for page in part.chunks_exact(size) {
                if let Some(pgno) = Pgno::new(next).filter(|pgno| *pgno != self.page_size.lock_page()) {
                    checksum = checksum.toggle(PageSum::of(pgno, page));
                }
                next += 1;
            }
        }
        Ok(checksum)
    }
}

fn free_leaves(image: &Image) -> Option<freelist::Freelist> {
    let mut first = [0; header::HEADER_LEN];
    image.file.read_exact_at(&mut first, 0).ok()?;
    let head = header::Header::parse(&first)?;
    freelist::walk(&head, image.pages, |pgno, page| {
        image.file.read_exact_at(page, image.page_size.offset_of(pgno))
    })
    .ok()
}

fn copy(source: &File, target: &File) -> std::io::Result<()> {
    let mut from = source.try_clone()?;
    let mut to = target.try_clone()?;
    from.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = super::database::read_at_most(source, &mut buffer, at)?;
        if read == 0 {
            return to.seek(SeekFrom::Start(0)).map(drop);
        }
        target.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
}

/// A file in `dir` that has no name and goes with its last descriptor (O_TMPFILE).
pub(super) fn tempfile_in(dir: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let fd =
        rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(fd))
}
