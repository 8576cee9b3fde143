//! The journal of DELETE mode. SQLite makes and unlinks one for each transaction; here its
//! file is kept for the next one, and applications find none. That is what SQLite itself
//! does in journal_mode=PERSIST: the header is zeroed, what follows stays, and the next
//! transaction overwrites blocks that are there (fdatasync: 190 µs in place of 320 µs;
//! to cut the file: 150 µs). Must not decide what is a commit.
//!
//! PERSIST syncs the zeroed header, DELETE never did: after a loss of power the old header
//! may stand before what the next transaction wrote. `recover_journal` tells such a journal
//! from one that is hot, by the captured checksums.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::database::State;
use super::{Database, DbError, FileKind};
use crate::sqlite::{ReadAt, journal};

/// How long a kept file is whose content is not: too short to say anything. Not empty:
/// ext4 writes a file that was cut to nothing to the disk when it is next closed
/// (auto_da_alloc), and the next cut waits for that.
pub const KEPT_EMPTY: u64 = 1;

/// What a kept file with content begins with: the header as PERSIST zeroes it, and a mark
/// in the rest of its sector, which SQLite's next header overwrites.
const HEAD: [u8; journal::HEADER_LEN + 8] =
    *b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0ltfskept";

/// Of longer journals the content is not kept.
const MOST: u64 = 128 << 10;

/// Whether a journal of `len` bytes is one that was kept, which says nothing.
pub(super) fn is_kept(journal: &File, len: u64) -> io::Result<bool> {
    let mut head = [0; HEAD.len()];
    Ok(len <= KEPT_EMPTY || (journal.read_upto(&mut head, 0)? == head.len() && head == HEAD))
}

impl Database {
    /// Whether applications find no such file, though one is kept for the next time.
    pub fn is_retired(&self, kind: FileKind) -> bool {
        kind == FileKind::Journal && self.retired.load(Ordering::Acquire)
    }

    /// Whether applications find such a file.
    pub fn has_file(&self, kind: FileKind) -> bool {
        !self.is_retired(kind) && self.path(kind).exists()
    }

    /// Whether a file is kept that becomes this one when applications make it.
    pub fn has_kept(&self, kind: FileKind) -> bool {
        if !self.is_retired(kind) {
            return false;
        }
        let mut state = self.lock();
        // Somebody may have removed it below the data directory.
        state.kept.take_if(|file| !file.metadata().is_ok_and(|file| file.nlink() > 0));
        state.kept.is_some() || self.path(kind).exists()
    }

    /// Unlinks the journal as far as applications can see: the commit. Only where nobody
    /// has the journal open: they would see the next one.
    pub fn retire_journal(&self) -> Result<(), DbError> {
        let path = self.path(FileKind::Journal);
        let mut state = self.lock();
        if state.nonce.is_some() {
            self.end_journal(&mut state)?;
        }
        let journal = match state.journal.take() {
            Some(journal) => journal,
            None => {
                let file = OpenOptions::new().read(true).write(true).open(&path);
                Arc::new(file.map_err(DbError::io("open", &path))?)
            }
        };
        self.forget_handle(FileKind::Journal);
        if self.keeps_content(&journal).map_err(DbError::io("read", &path))? {
            journal.write_all_at(&HEAD, 0).map_err(DbError::io("write", &path))?;
        } else {
            journal.set_len(KEPT_EMPTY).map_err(DbError::io("truncate", &path))?;
        }
        state.kept = Some(journal);
        self.retired.store(true, Ordering::Release);
        drop(state);
        self.shared.faults.pass("db.removed").map_err(DbError::io("truncate", path))
    }

    /// Whether what a journal holds may stay: nothing of it can be taken for a part of a
    /// later one, and the log alone says what was committed.
    fn keeps_content(&self, journal: &File) -> io::Result<bool> {
        let len = journal.metadata()?.len();
        Ok(len <= MOST && self.writable() && !self.is_halted() && journal::is_one_segment(journal, len)?)
    }

    /// The journal that was kept goes, or has gone; true if there was one.
    pub(super) fn forget_kept_journal(&self, state: &mut State) -> bool {
        state.kept = None;
        self.retired.swap(false, Ordering::AcqRel)
    }

    /// Makes durable that the last transaction's journal is void, before anything but an
    /// application changes the database: of what comes then no journal's nonce tells it
    /// from one that is hot.
    pub(super) fn sync_journal(&self) -> Result<(), DbError> {
        let path = self.path(FileKind::Journal);
        match File::open(&path) {
            Ok(file) => file.sync_data().map_err(DbError::io("sync", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(DbError::io("open", path)(source)),
        }
    }

    /// Whether a journal or WAL with content lies beside the database.
    pub(super) fn has_sidecar(&self) -> bool {
        let len = |kind| fs::metadata(self.path(kind)).map_or(0, |file| file.len());
        [FileKind::Journal, FileKind::Wal]
            .into_iter()
            .any(|kind| !self.is_retired(kind) && len(kind) > KEPT_EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_journal_is_told_from_one_that_persist_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let persisted = [&[0; journal::HEADER_LEN][..], &[7; 600]].concat();
        let kept = [&HEAD[..], &[7; 600]].concat();
        for (content, expected) in [(&b""[..], true), (b"\0", true), (&persisted, false), (&kept, true)] {
            fs::write(&path, content).expect("write");
            let file = File::open(&path).expect("open");
            assert_eq!(is_kept(&file, content.len() as u64).expect("read"), expected);
            assert_eq!(journal::Header::read(&file).expect("read"), None, "SQLite does not play it back");
        }
    }
}
