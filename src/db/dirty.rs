//! The pages written to a database file since its last capture (rollback modes), in
//! memory and in a file that survives the daemon's death, so that pages which SQLite
//! does not journal (reused free leaves) are found again. Must not read pages.
//!
//! File: an 8-byte generation, then 8-byte entries (generation, page number). A
//! commit bumps the generation instead of truncating.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::words::Pgno;

/// The dirty pages of one database.
#[derive(Debug)]
pub(super) struct Dirty {
    path: PathBuf,
    file: Option<File>,
    generation: u32,
    pages: BTreeSet<Pgno>,
    written: u64,
}

impl Dirty {
    /// The list in `path`, with what an earlier daemon left in it.
    pub fn open(path: PathBuf) -> io::Result<Dirty> {
        let mut dirty = Dirty { path, file: None, generation: 1, pages: BTreeSet::new(), written: 0 };
        let bytes = match std::fs::read(&dirty.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(dirty),
            Err(error) => return Err(error),
        };
        let mut words = bytes.chunks_exact(4).map(|word| {
            let mut number = [0; 4];
            number.copy_from_slice(word);
            u32::from_be_bytes(number)
        });
        dirty.generation = words.next().unwrap_or(1);
        words.next();
        while let (Some(generation), Some(pgno)) = (words.next(), words.next()) {
            match Pgno::new(pgno) {
                Some(pgno) if generation == dirty.generation => dirty.pages.insert(pgno),
                _ => break,
            };
            dirty.written += 1;
        }
        Ok(dirty)
    }

    /// Adds a page.
    pub fn insert(&mut self, pgno: Pgno) -> io::Result<()> {
        if !self.pages.insert(pgno) {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&self.path)?;
                file.write_all_at(&self.header(), 0)?;
                self.file.insert(file)
            }
        };
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&self.generation.to_be_bytes());
        entry[4..].copy_from_slice(&pgno.get().to_be_bytes());
        file.write_all_at(&entry, 8 + 8 * self.written)?;
        self.written += 1;
        Ok(())
    }

    fn header(&self) -> [u8; 8] {
        let mut header = [0; 8];
        header[..4].copy_from_slice(&self.generation.to_be_bytes());
        header
    }

    /// The pages.
    pub fn pages(&self) -> &BTreeSet<Pgno> {
        &self.pages
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Empties the list: what was in it has been captured.
    pub fn clear(&mut self) -> io::Result<()> {
        if self.pages.is_empty() {
            return Ok(());
        }
        self.pages.clear();
        self.written = 0;
        self.generation = self.generation.wrapping_add(1);
        match &self.file {
            Some(file) => file.write_all_at(&self.header(), 0),
            None => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_daemon_finds_the_pages_since_the_last_capture() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("dirty");
        let page = |n| Pgno::new(n).expect("not zero");
        let mut dirty = Dirty::open(path.clone()).expect("opened");
        for n in [5, 7, 9] {
            dirty.insert(page(n)).expect("inserted");
        }
        dirty.clear().expect("cleared");
        dirty.insert(page(3)).expect("inserted");
        let again = Dirty::open(path).expect("opened");
        assert_eq!(again.pages().iter().copied().collect::<Vec<_>>(), [page(3)]);
    }
}
