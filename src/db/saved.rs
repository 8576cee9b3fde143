//! What a database's directory says of its position: written at checkpoints of the
//! local state, so that the log before them is not needed at start. Must not look at
//! the log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::database::State;
use super::log::{Place, WalEnd};
use super::recover::remove_if_there;
use super::{Database, DbError, FileKind};
use crate::words::{PageSize, Pos};

/// A database as of a checkpoint of the local state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    pub pos: Pos,
    pub page_size: Option<PageSize>,
    pub pages: u32,
    /// Salts, last captured frame and its checksum: of the WAL at that time.
    pub wal: Option<([u32; 2], u32, [u32; 2])>,
    /// The nonce of the journal that covered the last transaction; 0: none did. Such a
    /// journal is not hot, though a loss of power may bring it back.
    #[serde(default)]
    pub journal: u32,
    /// Records of the log before this place are of another past: the database was
    /// installed since.
    #[serde(default)]
    pub log_from: Place,
    /// An install or a catch-up was cut off.
    #[serde(default)]
    pub incomplete: bool,
}

impl Saved {
    /// Reads the file; a database that has none has no transaction.
    pub fn read(path: &Path) -> Result<Saved, DbError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                DbError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, error))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Saved::default()),
            Err(source) => Err(DbError::io("read", path)(source)),
        }
    }

    pub fn wal_end(&self) -> Option<WalEnd> {
        self.wal.map(|(salt, frame, sum)| WalEnd { salt, frame, sum })
    }

    /// Replaces the file, durably.
    pub fn write(&self, path: &Path) -> Result<(), DbError> {
        let text =
            serde_json::to_vec(self).map_err(|error| DbError::io("write", path)(io::Error::other(error)))?;
        replace_file(path, &text).map_err(DbError::io("write", path))
    }
}

/// Replaces a small file by rename, durably.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Database {
    /// Makes the local files stand for the position by themselves, so that the log
    /// up to now is not needed at start. The caller made the log durable; what is
    /// captured while this runs is in the log after that.
    pub fn checkpoint(&self) -> Result<(), DbError> {
        let mut state = self.lock();
        if state.sums.pending() == 0 && !state.unsaved && !state.unsynced {
            return Ok(());
        }
        // The table may only say what a durable log explains.
        self.shared.log.sync()?;
        if state.exists {
            let file = self.database_file(&mut state)?;
            file.sync_data().map_err(DbError::io("sync", self.path(FileKind::Database)))?;
        }
        if let Some(wal) = &state.wal_file {
            wal.sync_data().map_err(DbError::io("sync", self.path(FileKind::Wal)))?;
        }
        let pages = state.pages;
        state.sums.flush(pages).map_err(DbError::io("write", self.paths.sums()))?;
        self.shared.faults.pass("checkpoint.sums").map_err(DbError::io("write", self.paths.sums()))?;
        let wal = state.wal.as_ref().map(|track| (track.header.salt, track.end.frames, track.end.sum));
        let (pos, page_size) = (state.pos, state.page_size);
        let (journal, log_from, incomplete) = (state.last_nonce, state.log_from, state.incomplete);
        Saved { pos, page_size, pages, wal, journal, log_from, incomplete }.write(&self.paths.state())?;
        state.unsaved = false;
        self.sync_parents()?;
        self.unmark_unsynced(&mut state)
    }

    /// Marks that synchronous=OFF is at work: after a loss of power the whole file must
    /// be compared, since any page of it may be newer than what the log explains. Once
    /// between two checkpoints of the local state, not once a transaction.
    pub(super) fn mark_unsynced(&self, state: &mut State) -> Result<(), DbError> {
        if state.unsynced {
            return Ok(());
        }
        let path = self.paths.unsynced();
        let mark = || File::create(&path)?.sync_all().and_then(|()| sync_dir(self.paths.dir()));
        mark().map_err(DbError::io("create", &path))?;
        state.unsynced = true;
        Ok(())
    }

    /// Makes the names of the database's files and of its directory durable.
    pub(super) fn sync_names(&self) -> Result<(), DbError> {
        sync_dir(self.paths.dir()).map_err(DbError::io("sync", self.paths.dir()))?;
        self.sync_parents()
    }

    fn sync_parents(&self) -> Result<(), DbError> {
        let above = self.paths.dir().ancestors().skip(1);
        let mut dirs = above.take_while(|dir| dir.starts_with(&self.shared.root));
        dirs.try_for_each(|dir| sync_dir(dir).map_err(DbError::io("sync", dir)))
    }

    /// Removes mark files, durably: one that a loss of power brought back would have recovery
    /// take what applications write from here on for something else.
    pub(super) fn remove_marks(&self, marks: &[PathBuf]) -> Result<(), DbError> {
        let mut removed = false;
        for path in marks {
            removed |= remove_if_there(path).map_err(DbError::io("remove", path))?;
        }
        match removed {
            true => sync_dir(self.paths.dir()).map_err(DbError::io("sync", self.paths.dir())),
            false => Ok(()),
        }
    }

    fn unmark_unsynced(&self, state: &mut State) -> Result<(), DbError> {
        // The pages of an open transaction are in the file, and not in the log.
        if !state.unsynced || !state.dirty.is_empty() || state.whole {
            return Ok(());
        }
        self.remove_marks(&[self.paths.unsynced()])?;
        state.unsynced = false;
        Ok(())
    }
}
