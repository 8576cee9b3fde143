//! The database file of one that is dropped. It gets another name before the log says that
//! the database is dropped, so that a file that recovery finds is never the old one: a new
//! database of that name may have transactions that only its WAL has. Must not decide
//! whether a database is dropped.

use std::fs;
use std::path::PathBuf;

use super::database::State;
use super::recover::remove_if_there;
use super::{Database, DbError, FileKind, sync_dir};

impl Database {
    /// Takes the file out of the way, durably.
    pub(super) fn set_aside(&self) -> Result<(), DbError> {
        self.rename(self.path(FileKind::Database), self.paths.dropped())
    }

    /// It is not dropped after all.
    pub(super) fn put_back(&self) -> Result<(), DbError> {
        self.rename(self.paths.dropped(), self.path(FileKind::Database))
    }

    /// At every moment it has one of the names, whatever a loss of power leaves of them.
    fn rename(&self, from: PathBuf, to: PathBuf) -> Result<(), DbError> {
        let durable = || {
            self.shared.faults.pass("db.aside").map_err(DbError::io("rename", self.paths.dir()))?;
            sync_dir(self.paths.dir()).map_err(DbError::io("sync", self.paths.dir()))
        };
        match fs::hard_link(&from, &to) {
            Ok(()) => {
                durable()?;
                fs::remove_file(&from).map_err(DbError::io("remove", from))?;
            }
            // An attempt before this one got so far.
            Err(_) if to.exists() && !from.exists() => {}
            // Not every file system has links.
            Err(_) => fs::rename(&from, &to).map_err(DbError::io("rename", from))?,
        }
        durable()
    }

    /// The log has it: the file goes.
    pub(super) fn remove_dropped(&self) -> Result<bool, DbError> {
        let dropped = self.paths.dropped();
        remove_if_there(&dropped).map_err(DbError::io("remove", dropped))
    }

    /// What a drop left that was cut off.
    pub(super) fn recover_dropped(&self, state: &mut State) -> Result<(), DbError> {
        if state.pages > 0 && !state.exists && self.paths.dropped().exists() {
            self.put_back()?;
            state.exists = true;
        }
        self.remove_dropped().map(drop)
    }
}
