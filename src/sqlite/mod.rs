//! SQLite's file formats: database header, rollback journal, WAL, wal-index,
//! freelist. Pure parsers over bytes and positioned reads: no input makes them
//! panic, loop or allocate more than they were given. Must not open, write or lock
//! files.
//!
//! References are to <https://www.sqlite.org/fileformat2.html> and to pager.c and
//! wal.c of SQLite, whose behaviour decides where the two differ.

mod bitmap;
pub mod freelist;
pub mod header;
pub mod journal;
pub mod wal;
pub mod wal_index;
pub mod wal_tables;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Something with bytes at offsets: a file, or bytes in memory.
pub trait ReadAt {
    /// Reads at `offset` until `into` is full or the end is reached; how much was
    /// read.
    ///
    /// # Errors
    /// Those of pread(2), but never EINTR.
    fn read_upto(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_upto(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl ReadAt for [u8] {
    fn read_upto(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let bytes = self.get(from..).unwrap_or_default();
        let len = bytes.len().min(into.len());
        for (to, from) in into.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(len)
    }
}

impl ReadAt for Vec<u8> {
    fn read_upto(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_upto(into, offset)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn read_upto(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_upto(into, offset)
    }
}

/// The big-endian number at `at`; `None` beyond the end.
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

/// The number in the machine's byte order at `at`; `None` beyond the end.
fn ne32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}
