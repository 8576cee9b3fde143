//! Bringing a database to a position of the archive while no application is there: a
//! whole database (restore), or the pages that changed since a position (catch-up).
//! A crash in between leaves a database that says so, and is brought to the head
//! again at the next start. Must not know where the pages come from.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::recover::remove_if_there;
use super::saved::{Saved, sync_dir};
use super::sums::Sums;
use super::{Database, DbError, FileKind};
use crate::words::{Checksum, PageSize, PageSum, Pgno, Pos, start_writing};

/// Where and how large a database will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The position.
    pub pos: Pos,
    /// The page size.
    pub page_size: PageSize,
    /// The size in pages; 0: dropped.
    pub pages: u32,
}

/// A whole database that arrives page by page, in any order, from any thread.
pub struct Incoming<'a> {
    database: &'a Database,
    goal: Goal,
    file: File,
    sums: File,
    file_path: PathBuf,
    sums_path: PathBuf,
}

/// The pages of a catch-up, which are written in place.
pub struct Applying<'a> {
    database: &'a Database,
    goal: Goal,
    base: Checksum,
    afresh: bool,
    file: Arc<File>,
    /// New checksums; the old ones are still in the table.
    pages: Mutex<Vec<(Pgno, PageSum)>>,
}

impl Database {
    /// Whether an install or a catch-up was cut off: the content is between two
    /// positions until it is brought to the head.
    pub fn incomplete(&self) -> bool {
        self.lock().incomplete
    }

    /// Begins to take in a whole database; what is there goes when it is complete.
    pub fn install(&self, goal: Goal) -> Result<Incoming<'_>, DbError> {
        fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
        let create =
            |path: &PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let (file_path, sums_path) =
            (self.paths.dir().join("database.new"), self.paths.dir().join("sums.new"));
        let file = create(&file_path).map_err(DbError::io("create", &file_path))?;
        let sums = create(&sums_path).map_err(DbError::io("create", &sums_path))?;
        Ok(Incoming { database: self, goal, file, sums, file_path, sums_path })
    }

    /// Begins to write the pages that changed since the position.
    pub fn apply(&self, goal: Goal) -> Result<Applying<'_>, DbError> {
        let mut state = self.lock();
        self.sync_journal()?;
        let file = if goal.pages > 0 && !state.exists {
            fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
            let path = self.path(FileKind::Database);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
            let file = Arc::new(file.map_err(DbError::io("create", path))?);
            state.exists = true;
            state.file = Some(Arc::clone(&file));
            file
        } else if state.exists {
            self.database_file(&mut state)?
        } else {
            return Err(self.damaged("it is dropped, and so is it in the archive: nothing to apply"));
        };
        state.incomplete = true;
        self.save(&state)?;
        let afresh = state.pages == 0 || state.page_size != Some(goal.page_size);
        let base = if afresh { Checksum::EMPTY } else { state.pos.checksum };
        Ok(Applying { database: self, goal, base, afresh, file, pages: Mutex::default() })
    }

    /// Brings the database to "dropped" at this position.
    pub fn apply_drop(&self, goal: Goal) -> Result<(), DbError> {
        let mut state = self.lock();
        state.incomplete = true;
        self.save(&state)?;
        remove_if_there(&self.path(FileKind::Database))
            .map_err(DbError::io("remove", self.path(FileKind::Database)))?;
        state.exists = false;
        state.file = None;
        state.sums.remove().map_err(DbError::io("remove", self.paths.sums()))?;
        self.reach(&mut state, goal)
    }

    fn save(&self, state: &super::database::State) -> Result<(), DbError> {
        fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
        Saved {
            pos: state.pos,
            page_size: state.page_size,
            pages: state.pages,
            wal: None,
            journal: state.last_nonce,
            log_from: state.log_from,
            incomplete: state.incomplete,
        }
        .write(&self.paths.state())
    }

    /// The database now stands at `goal`, durably.
    fn reach(&self, state: &mut super::database::State, goal: Goal) -> Result<(), DbError> {
        state.pos = goal.pos;
        state.last_nonce = 0;
        state.page_size = Some(goal.page_size);
        state.pages = goal.pages;
        state.whole = goal.pages == 0;
        state.incomplete = false;
        state.log_from = self.shared.log.end();
        state.dirty.clear().map_err(DbError::io("write", self.paths.dirty()))?;
        self.save(state)?;
        state.unsaved = false;
        self.show(goal.pos);
        Ok(())
    }
}

/// What is moved aside of a database whose branch lost.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Parked {
    /// The database.
    pub db: crate::words::DbName,
    /// Where it stood.
    pub pos: Pos,
    /// Where it left the archive's chain, if that is known.
    #[serde(default)]
    pub from: Option<Pos>,
    /// When it was parked.
    pub at: crate::words::Timestamp,
    /// Whose it was.
    #[serde(default)]
    pub node: Option<crate::words::NodeId>,
}

impl Database {
    /// Moves the database's files into `dir`, with this description, and stands at no
    /// position until it is brought to the archive's head.
    pub fn park(&self, dir: &Path, parked: Parked) -> Result<Parked, DbError> {
        let mut state = self.lock();
        fs::create_dir_all(dir).map_err(DbError::io("create", dir))?;
        let parked = Parked { pos: state.pos, ..parked };
        let text = serde_json::to_vec_pretty(&parked)
            .map_err(|error| DbError::io("write", dir)(io::Error::other(error)))?;
        super::replace_file(&dir.join("parked.json"), &text).map_err(DbError::io("write", dir))?;
        // Kept under its new name before anything forgets it under the old one.
        let (path, target) = (self.path(FileKind::Database), dir.join("database"));
        match fs::hard_link(&path, &target) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Not every file system has links.
            Err(_) => copy(&path, &target).map_err(DbError::io("copy to", target))?,
        }
        for dir in dir.ancestors().take(2) {
            sync_dir(dir).map_err(DbError::io("sync", dir))?;
        }
        state.pos = Pos::ZERO;
        state.pages = 0;
        state.page_size = None;
        state.whole = true;
        state.incomplete = true;
        state.file = None;
        state.sums.clear();
        state.log_from = self.shared.log.end();
        self.save(&state)?;
        remove_if_there(&path).map_err(DbError::io("remove", path))?;
        state.exists = false;
        state.sums.remove().map_err(DbError::io("remove", self.paths.sums()))?;
        self.show(Pos::ZERO);
        Ok(parked)
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

impl Incoming<'_> {
    /// Takes in a page and its checksum.
    pub fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()> {
        self.file.write_all_at(data, self.goal.page_size.offset_of(pgno))?;
        self.sums.write_all_at(&sum.get().to_be_bytes(), u64::from(pgno.get() - 1) * 8)
    }

    /// Takes in pages that follow each other, from `first` on.
    pub fn run(&self, first: Pgno, data: &[u8], sums: &[PageSum]) -> io::Result<()> {
        let offset = self.goal.page_size.offset_of(first);
        self.file.write_all_at(data, offset)?;
        start_writing(&self.file, offset, data.len() as u64);
        let sums: Vec<u8> = sums.iter().flat_map(|sum| sum.get().to_be_bytes()).collect();
        self.sums.write_all_at(&sums, u64::from(first.get() - 1) * 8)
    }

    /// The database becomes what arrived. The caller has verified its checksum.
    pub fn finish(self) -> Result<(), DbError> {
        let database = self.database;
        let (len, entries) = (
            u64::from(self.goal.pages) * u64::from(self.goal.page_size.get()),
            u64::from(self.goal.pages) * 8,
        );
        self.file.set_len(len).map_err(DbError::io("truncate", &self.file_path))?;
        self.sums.set_len(entries).map_err(DbError::io("truncate", &self.sums_path))?;
        self.file.sync_all().map_err(DbError::io("sync", &self.file_path))?;
        self.sums.sync_all().map_err(DbError::io("sync", &self.sums_path))?;
        let mut state = database.lock();
        // From here to the last line the directory is of two positions.
        state.incomplete = true;
        database.save(&state)?;
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            remove_if_there(&database.path(kind)).map_err(DbError::io("remove", database.path(kind)))?;
        }
        database.forget_kept_journal(&mut state);
        let target = database.path(FileKind::Database);
        fs::rename(&self.file_path, &target).map_err(DbError::io("rename", target))?;
        fs::rename(&self.sums_path, database.paths.sums())
            .map_err(DbError::io("rename", database.paths.sums()))?;
        sync_dir(database.paths.dir()).map_err(DbError::io("sync", database.paths.dir()))?;
        state.exists = true;
        state.file = None;
        state.sums = Sums::open(database.paths.sums(), self.goal.pages)
            .map_err(DbError::io("open", database.paths.sums()))?;
        database.reach(&mut state, self.goal)
    }
}

impl Applying<'_> {
    /// Writes a page.
    pub fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()> {
        self.file.write_all_at(data, self.goal.page_size.offset_of(pgno))?;
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).push((pgno, sum));
        Ok(())
    }

    /// Checks that the result has the goal's checksum, and makes it the position.
    pub fn finish(self) -> Result<(), DbError> {
        let database = self.database;
        let path = database.path(FileKind::Database);
        let len = u64::from(self.goal.pages) * u64::from(self.goal.page_size.get());
        let mut state = database.lock();
        let before = if self.afresh { 0 } else { state.pages };
        if self.afresh {
            state.sums.clear();
        }
        let pages = self.pages.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut checksum = self.base;
        let io = || DbError::io("read", database.paths.sums());
        for (pgno, sum) in pages {
            checksum = checksum.replace(state.sums.get(pgno).map_err(io())?, Some(sum));
            state.sums.set(pgno, Some(sum));
        }
        for pgno in (self.goal.pages.saturating_add(1)..=before).filter_map(Pgno::new) {
            checksum = checksum.replace(state.sums.get(pgno).map_err(io())?, None);
            state.sums.set(pgno, None);
        }
        if checksum != self.goal.pos.checksum {
            state.sums.clear();
            return Err(database.damaged(format!(
                "after catching up to {} it has checksum {checksum}; move the data directory aside and start again: \
                 the node then restores from the archive",
                self.goal.pos
            )));
        }
        self.file.set_len(len).map_err(DbError::io("truncate", &path))?;
        self.file.sync_all().map_err(DbError::io("sync", &path))?;
        let goal = self.goal;
        state.sums.flush(goal.pages).map_err(DbError::io("write", database.paths.sums()))?;
        database.reach(&mut state, goal)
    }
}
