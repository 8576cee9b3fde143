//! What a data directory keeps of branches that lost: listed and taken out without a
//! node. Must not change it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::db::Parked;

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
        found.push(branch(&entry.path(), entry.file_name().to_string_lossy().into_owned())?);
    }
    found.sort_by(|a, b| (a.parked.at, &a.id).cmp(&(b.parked.at, &b.id)));
    Ok(found)
}

fn branch(dir: &Path, id: String) -> Result<ParkedBranch, StoreError> {
    let path = dir.join("parked.json");
    let text = fs::read(&path).map_err(StoreError::io("read", &path))?;
    let parked = serde_json::from_slice(&text)
        .map_err(|error| StoreError::Damaged { path, why: error.to_string() })?;
    let file = dir.join("database");
    let size = match File::open(&file).and_then(|file| file.metadata()) {
        Ok(meta) => Some(meta.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io("read", file)(error)),
    };
    Ok(ParkedBranch { id, parked, file, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{DbName, Pos, Timestamp};

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
                at: Timestamp::from_millis(at),
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
}
