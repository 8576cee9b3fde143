//! fsync of a directory of the mount. Each database has a directory of its own below
//! the data directory, so the fsync that SQLite makes after creating a journal must
//! reach the backing directories in which names changed since the last one. A journal
//! whose file is kept is gone when its truncation is durable, not a name.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Backing directories whose names changed, and kept journals, by directory of the mount.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<String, HashMap<PathBuf, u64>>>);

impl Unsynced {
    /// A name changed in `backing`, which shows in `dir` of the mount.
    pub(super) fn changed(&self, dir: &str, backing: &Path) {
        let mut all = self.0.lock();
        if let Some(changes) = all.get_mut(dir).and_then(|dirs| dirs.get_mut(backing)) {
            *changes += 1;
            return;
        }
        all.entry(dir.to_owned()).or_default().insert(backing.to_owned(), 1);
    }

    /// How often `backing` changed since its last fsync.
    pub(super) fn changes(&self, dir: &str, backing: &Path) -> u64 {
        self.0.lock().get(dir).and_then(|dirs| dirs.get(backing)).copied().unwrap_or(0)
    }

    /// Makes the names in `dir` durable. An entry stays until its fsync has succeeded,
    /// so that two callers at once both wait for it.
    pub(super) fn sync(&self, dir: &str) -> io::Result<()> {
        let due: Vec<(PathBuf, u64)> = match self.0.lock().get(dir) {
            Some(dirs) => dirs.iter().map(|(path, changes)| (path.clone(), *changes)).collect(),
            None => return Ok(()),
        };
        for (path, changes) in due {
            match File::open(&path) {
                Ok(opened) => opened.sync_all()?,
                // The directory went, and its names with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.done(dir, &path, changes);
        }
        Ok(())
    }

    /// An fsync of `path` has succeeded that began after so many changes.
    pub(super) fn done(&self, dir: &str, path: &Path, changes: u64) {
        let mut all = self.0.lock();
        let Some(dirs) = all.get_mut(dir) else { return };
        if dirs.get(path) == Some(&changes) {
            dirs.remove(path);
        }
        if dirs.is_empty() {
            all.remove(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_is_not_synced_again_and_what_went_is_no_error() {
        let backing = tempfile::tempdir().expect("a directory");
        let unsynced = Unsynced::default();
        unsynced.changed("", backing.path());
        unsynced.changed("", Path::new("/nonexistent/litefs"));
        unsynced.changed("other", backing.path());
        unsynced.sync("").expect("sync");
        assert!(!unsynced.0.lock().contains_key(""));
        assert!(unsynced.0.lock().contains_key("other"));
    }
}
