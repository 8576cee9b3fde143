//! Where restored pages go, and who watches. Must not know the archive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::words::{PageSize, PageSum, Pgno, start_writing};

/// Takes restored pages.
pub trait PageSink: Sync {
    /// Takes page `pgno`; called from several threads, once a page, in no order.
    ///
    /// # Errors
    /// Ends the restore.
    fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()>;

    /// Takes pages that follow each other, from `first` on, as `page` does each: most
    /// pages of a restore come so, and one call is cheaper than many.
    ///
    /// # Errors
    /// Ends the restore.
    fn run(&self, first: Pgno, data: &[u8], sums: &[PageSum]) -> io::Result<()> {
        let size = data.len() / sums.len().max(1);
        let pages = data.chunks_exact(size.max(1)).zip(sums);
        (first.get()..)
            .filter_map(Pgno::new)
            .zip(pages)
            .try_for_each(|(pgno, (page, sum))| self.page(pgno, page, *sum))
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages done.
    pub pages: u64,
    /// Pages in all; with a base, at most.
    pub total: u64,
    /// Compressed bytes decoded.
    pub bytes: u64,
}

/// Watches a restore.
pub trait Watch: Sync {
    /// Called now and then, from several threads; false cancels the restore.
    fn progress(&self, progress: Progress) -> bool;
}

/// Nobody watches.
impl Watch for () {
    fn progress(&self, _: Progress) -> bool {
        true
    }
}

impl<F: Fn(Progress) -> bool + Sync> Watch for F {
    fn progress(&self, progress: Progress) -> bool {
        self(progress)
    }
}

/// A database file.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    page_size: PageSize,
}

impl FileSink {
    /// Makes the file, which must not exist, as large as the database will be, and
    /// sparse: the lock page stays a hole.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(path: &Path, page_size: PageSize, commit: u32) -> io::Result<FileSink> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(u64::from(commit) * u64::from(page_size.get()))?;
        Ok(FileSink { file, page_size })
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> io::Result<File> {
        self.file.sync_all()?;
        Ok(self.file)
    }
}

impl PageSink for FileSink {
    fn page(&self, pgno: Pgno, data: &[u8], _: PageSum) -> io::Result<()> {
        self.file.write_all_at(data, self.page_size.offset_of(pgno))
    }

    fn run(&self, first: Pgno, data: &[u8], _: &[PageSum]) -> io::Result<()> {
        let offset = self.page_size.offset_of(first);
        self.file.write_all_at(data, offset)?;
        start_writing(&self.file, offset, data.len() as u64);
        Ok(())
    }
}
