//! The checksums of a database's pages as of its position: a table in a file, and
//! the changes since the last checkpoint in memory. The file is written only after
//! the log that explains the changes is durable (write-ahead), so that after a crash
//! table + log give the position again. Must not read database pages.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::words::{PageSum, Pgno};

const ENTRY: u64 = 8;

/// The table of one database.
#[derive(Debug)]
pub(super) struct Sums {
    path: PathBuf,
    file: Option<File>,
    /// Entries of the file that count; those after are gone or stale.
    in_file: u32,
    /// Changes that the file does not have; 0: no such page.
    changes: HashMap<u32, u64>,
}

impl Sums {
    /// The table in `path`, of a database with `pages` pages.
    pub fn open(path: PathBuf, pages: u32) -> io::Result<Sums> {
        let mut sums = Sums { path, file: None, in_file: 0, changes: HashMap::new() };
        if pages > 0 {
            // A flush that was cut off may have shortened the file for a position that
            // the log explains: what is missing comes from there.
            let file = OpenOptions::new().read(true).write(true).open(&sums.path)?;
            let entries = file.metadata()?.len() / ENTRY;
            sums.in_file = pages.min(u32::try_from(entries).unwrap_or(u32::MAX));
            sums.file = Some(file);
        }
        Ok(sums)
    }

    /// The checksum of a page; `None` for one that the database does not have.
    pub fn get(&self, pgno: Pgno) -> io::Result<Option<PageSum>> {
        if let Some(value) = self.changes.get(&pgno.get()) {
            return Ok(PageSum::from_stored(*value));
        }
        match &self.file {
            Some(file) if pgno.get() <= self.in_file => {
                let mut value = [0; ENTRY as usize];
                file.read_exact_at(&mut value, u64::from(pgno.get() - 1) * ENTRY)?;
                Ok(PageSum::from_stored(u64::from_be_bytes(value)))
            }
            _ => Ok(None),
        }
    }

    /// Sets the checksum of a page; `None` if the database has it no longer.
    pub fn set(&mut self, pgno: Pgno, sum: Option<PageSum>) {
        self.changes.insert(pgno.get(), sum.map_or(0, PageSum::get));
    }

    /// Forgets every page: the database was dropped, or all pages changed.
    pub fn clear(&mut self) {
        self.in_file = 0;
        self.changes.clear();
    }

    /// How many changes wait for a flush.
    pub fn pending(&self) -> usize {
        self.changes.len()
    }

    /// Writes the changes into the file, makes it durable, and leaves `pages`
    /// entries. The caller made the log durable before.
    pub fn flush(&mut self, pages: u32) -> io::Result<()> {
        if self.changes.is_empty() && self.in_file == pages {
            return Ok(());
        }
        if self.file.is_none() {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
            self.file = Some(file);
        }
        let Some(file) = &self.file else { return Ok(()) };
        if self.in_file == 0 {
            file.set_len(0)?;
        }
        let mut changes: Vec<(u32, u64)> = self
            .changes
            .iter()
            .filter(|(pgno, _)| **pgno <= pages)
            .map(|(pgno, sum)| (*pgno, *sum))
            .collect();
        changes.sort_unstable();
        let mut run: Vec<u8> = Vec::new();
        let mut at = 0;
        for (pgno, sum) in changes {
            let offset = u64::from(pgno - 1) * ENTRY;
            if offset != at + run.len() as u64 || run.len() > 1 << 20 {
                file.write_all_at(&run, at)?;
                run.clear();
                at = offset;
            }
            run.extend_from_slice(&sum.to_be_bytes());
        }
        file.write_all_at(&run, at)?;
        file.set_len(u64::from(pages) * ENTRY)?;
        file.sync_data()?;
        self.in_file = pages;
        self.changes = HashMap::new();
        Ok(())
    }

    /// Removes the file.
    pub fn remove(&mut self) -> io::Result<()> {
        self.clear();
        self.file = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
