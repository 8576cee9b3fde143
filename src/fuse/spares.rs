//! Backing files of journals that DELETE mode unlinked, still registered with the kernel:
//! the next transaction's journal is the same file (`db::kept`), and to register it again
//! costs two ioctls of each commit. Must not open files.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

/// A registered file.
type Spare = (Arc<File>, Arc<BackingId>);

/// By path below the mount.
#[derive(Default)]
pub(super) struct Spares(Mutex<HashMap<String, Spare>>);

impl Spares {
    /// Nobody has the file at `path` open any more.
    pub(super) fn put(&self, path: &str, file: Arc<File>, backing: Arc<BackingId>) {
        let mut spares = self.0.lock();
        match spares.get_mut(path) {
            Some(spare) => *spare = (file, backing),
            None => drop(spares.insert(path.to_owned(), (file, backing))),
        }
    }

    /// The registration of `file`, which is at `path` again; one of another file is dropped.
    pub(super) fn take(&self, path: &str, file: &Arc<File>) -> Option<Arc<BackingId>> {
        let mut spares = self.0.lock();
        let (of, backing) = spares.get(path)?;
        if Arc::ptr_eq(of, file) {
            return Some(backing.clone());
        }
        spares.remove(path);
        None
    }

    /// The file at `path` goes.
    pub(super) fn forget(&self, path: &str) {
        self.0.lock().remove(path);
    }

    /// Drops all.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
