//! The pages of a change set until it is applied: in memory, and in an unnamed file
//! where they are many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::words::{PageSum, Pgno};

/// Bytes in memory at most.
const MEMORY: usize = 16 << 20;

/// Pages in any order; the last content of each counts.
#[derive(Debug)]
pub(super) struct Spool {
    dir: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    end: u64,
    pages: BTreeMap<Pgno, (PageSum, u64)>,
}

impl Spool {
    /// An empty one; its file would be in `dir`.
    pub fn new(dir: &Path) -> Spool {
        Spool { dir: dir.to_owned(), memory: Vec::new(), file: None, end: 0, pages: BTreeMap::new() }
    }

    /// Takes in a page.
    pub fn put(&mut self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + data.len() > MEMORY {
            let file = super::super::image::tempfile_in(&self.dir)?;
            file.write_all_at(&self.memory, 0)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        match &self.file {
            Some(file) => file.write_all_at(data, self.end)?,
            None => self.memory.extend_from_slice(data),
        }
        self.pages.insert(pgno, (sum, self.end));
        self.end += data.len() as u64;
        Ok(())
    }

    /// The pages up to `last`, ascending.
    pub fn pages(&self, last: u32) -> impl Iterator<Item = Pgno> {
        self.pages.keys().copied().take_while(move |pgno| pgno.get() <= last)
    }

    /// Reads a page; false if it is not here.
    pub fn read(&self, pgno: Pgno, page: &mut [u8]) -> io::Result<bool> {
        let Some((_, at)) = self.pages.get(&pgno) else { return Ok(false) };
        if let Some(file) = &self.file {
            return file.read_exact_at(page, *at).map(|()| true);
        }
        let at = usize::try_from(*at).unwrap_or(usize::MAX);
        let kept = self.memory.get(at..).and_then(|rest| rest.get(..page.len()));
        kept.map(|kept| page.copy_from_slice(kept)).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(true)
    }
}
