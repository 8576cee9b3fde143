//! Where the files of a database lie below the data directory. Must not open them.

use std::path::{Path, PathBuf};

use crate::words::DbName;

/// A file of a database that an application opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// The database file.
    Database,
    /// The rollback journal, `<db>-journal`.
    Journal,
    /// The write-ahead log, `<db>-wal`.
    Wal,
    /// The wal-index, `<db>-shm`.
    Shm,
}

impl FileKind {
    /// Every kind.
    pub const ALL: [FileKind; 4] = [FileKind::Database, FileKind::Journal, FileKind::Wal, FileKind::Shm];

    /// What SQLite adds to the database's name.
    pub fn suffix(self) -> &'static str {
        match self {
            FileKind::Database => "",
            FileKind::Journal => "-journal",
            FileKind::Wal => "-wal",
            FileKind::Shm => "-shm",
        }
    }

    fn file_name(self) -> &'static str {
        match self {
            FileKind::Database => "database",
            FileKind::Journal => "journal",
            FileKind::Wal => "wal",
            FileKind::Shm => "shm",
        }
    }
}

/// The directory of one database and the files in it.
#[derive(Clone, Debug)]
pub struct Paths {
    dir: PathBuf,
}

impl Paths {
    /// The files of database `name` below `root` (`<data>/dbs`). A subdirectory of
    /// the mount is `d.<name>`, a database `f.<name>`, so that no two names meet.
    pub fn new(root: &Path, name: &DbName) -> Paths {
        let mut dir = root.to_path_buf();
        let mut components = name.as_str().split('/').peekable();
        while let Some(component) = components.next() {
            let prefix = if components.peek().is_some() { "d." } else { "f." };
            dir.push(format!("{prefix}{component}"));
        }
        Paths { dir }
    }

    /// The database's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of the files that applications see.
    pub fn file(&self, kind: FileKind) -> PathBuf {
        self.dir.join(kind.file_name())
    }

    /// The database file while it is dropped.
    pub fn dropped(&self) -> PathBuf {
        self.dir.join("dropped")
    }

    /// The table of page checksums.
    pub fn sums(&self) -> PathBuf {
        self.dir.join("sums")
    }

    /// The list of pages written since the last capture.
    pub fn dirty(&self) -> PathBuf {
        self.dir.join("dirty")
    }

    /// The position and shape as of the last checkpoint of the local state.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// There while the database file may hold pages that neither a durable journal nor
    /// a durable WAL explains.
    pub fn unsynced(&self) -> PathBuf {
        self.dir.join("unsynced")
    }

    /// There while change sets are being applied to the database file.
    pub fn applying(&self) -> PathBuf {
        self.dir.join("applying")
    }

    /// There while applications of this node write under the halt lock.
    pub fn halted(&self) -> PathBuf {
        self.dir.join("halted")
    }
}
