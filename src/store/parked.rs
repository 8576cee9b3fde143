//! What a data directory keeps of branches that lost: listed and taken out without a
//! node, marked when the archive has them too, and forgotten only after that. Must not
//! know the archive.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::StoreError;
use crate::db::{Parked, sync_dir};
use crate::words::{DbName, NodeId, Timestamp};

/// The file that says that the archive has the branch.
const ARCHIVED: &str = "archived";

/// A branch that lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedBranch {
    /// Its id: the name of its directory.
    pub id: String,
    /// What it is.
    pub parked: Parked,
    /// The database as it stood, a plain SQLite file.
    pub file: PathBuf,
    /// That file's size in bytes; `None` if the database had been dropped.
    pub size: Option<u64>,
    /// Whether the archive has it.
    pub archived: bool,
}

impl ParkedBranch {
    fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(&self.file)
    }

    /// Notes that the archive has it.
    pub fn mark_archived(&self) -> Result<(), StoreError> {
        let path = self.dir().join(ARCHIVED);
        File::create(&path).and_then(|_| sync_dir(self.dir())).map_err(StoreError::io("write", path))
    }

    /// Removes it from the data directory.
    pub fn forget(&self) -> Result<(), StoreError> {
        // Without its description it is none any more, whatever else is left.
        let path = self.dir().join("parked.json");
        fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
        fs::remove_dir_all(self.dir()).map_err(StoreError::io("remove", self.dir()))
    }
}

/// Tells whoever waits for it that a branch was moved aside.
#[derive(Debug, Default)]
pub struct Parks {
    state: Mutex<Noted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Noted {
    new: bool,
    ended: bool,
}

impl Parks {
    pub(super) fn note(&self) {
        self.state.lock().new = true;
        self.changed.notify_all();
    }

    /// Ends every wait, now and later.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until a branch was moved aside since the last wait, or the time is up; false
    /// when waiting has ended.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        let idle = |state: &mut Noted| !state.new && !state.ended;
        match timeout {
            Some(timeout) => drop(self.changed.wait_while_for(&mut state, idle, timeout)),
            None => self.changed.wait_while(&mut state, idle),
        }
        state.new = false;
        !state.ended
    }
}

/// Where a branch goes that node `node` parks. Other nodes may park the same database at
/// the same time, and all of them meet in the archive.
pub(super) fn dir_of(data: &Path, db: &DbName, at: Timestamp, node: NodeId) -> PathBuf {
    let label = db.as_str().replace('/', "%2F");
    let label: String = label.chars().take(160).collect();
    data.join("parked").join(format!("{label}-{}-{node}", at.millis()))
}

/// How many branches the data directory `data` keeps.
pub(super) fn count(data: &Path) -> u64 {
    fs::read_dir(data.join("parked")).map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.path().join("parked.json").exists()).count() as u64
    })
}

/// The branches that the data directory `data` keeps, the oldest first.
pub fn parked(data: &Path) -> Result<Vec<ParkedBranch>, StoreError> {
    let dir = data.join("parked");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("read", &dir))?;
        found.extend(branch(&entry.path(), entry.file_name().to_string_lossy().into_owned())?);
    }
    found.sort_by(|a, b| (a.parked.at, &a.id).cmp(&(b.parked.at, &b.id)));
    Ok(found)
}

/// The branch in `dir`; `None` for one that was not yet, or is not any more, described.
fn branch(dir: &Path, id: String) -> Result<Option<ParkedBranch>, StoreError> {
    let path = dir.join("parked.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let parked = serde_json::from_slice(&text)
        .map_err(|error| StoreError::Damaged { path, why: error.to_string() })?;
    let file = dir.join("database");
    let size = match File::open(&file).and_then(|file| file.metadata()) {
        Ok(meta) => Some(meta.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io("read", file)(error)),
    };
    Ok(Some(ParkedBranch { id, parked, file, size, archived: dir.join(ARCHIVED).exists() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Pos;

    #[test]
    fn branches_are_listed_with_their_files() {
        let data = tempfile::tempdir().expect("a directory");
        assert_eq!(parked(data.path()).expect("none"), Vec::new());
        for (at, id) in [(2, "b.db-2"), (1, "a.db-1")] {
            let dir = data.path().join("parked").join(id);
            fs::create_dir_all(&dir).expect("create");
            let what = Parked {
                db: DbName::new("a.db").expect("a name"),
                pos: Pos::ZERO,
                from: None,
                at: Timestamp::from_millis(at),
                node: None,
            };
            fs::write(dir.join("parked.json"), serde_json::to_vec(&what).expect("json")).expect("write");
        }
        fs::write(data.path().join("parked/b.db-2/database"), "1234").expect("write");
        let found = parked(data.path()).expect("two");
        let listed: Vec<_> = found.iter().map(|branch| (branch.id.as_str(), branch.size)).collect();
        assert_eq!(listed, [("a.db-1", None), ("b.db-2", Some(4))]);
        fs::write(data.path().join("parked/b.db-2/parked.json"), "{").expect("write");
        assert!(matches!(parked(data.path()), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_branch_is_forgotten_whole_and_a_half_made_one_is_none() {
        let data = tempfile::tempdir().expect("a directory");
        let name = DbName::new("a/b.db").expect("a name");
        let dir = dir_of(data.path(), &name, Timestamp::from_millis(7), NodeId::new(1));
        fs::create_dir_all(&dir).expect("create");
        assert_eq!((parked(data.path()).expect("none").len(), count(data.path())), (0, 0));
        let what = Parked { db: name, pos: Pos::ZERO, from: None, at: Timestamp::from_millis(7), node: None };
        fs::write(dir.join("parked.json"), serde_json::to_vec(&what).expect("json")).expect("write");
        fs::write(dir.join("database"), "1234").expect("write");
        let found = parked(data.path()).expect("one");
        assert_eq!((found[0].archived, count(data.path())), (false, 1));
        found[0].mark_archived().expect("marked");
        let found = parked(data.path()).expect("one");
        assert!(found[0].archived);
        found[0].forget().expect("forgotten");
        assert_eq!((parked(data.path()).expect("none").len(), dir.exists()), (0, false));
    }
}
