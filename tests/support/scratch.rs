//! A directory of one test below target/tmp (a real disk, not tmpfs), gone
//! afterwards unless the test failed.

use std::path::{Path, PathBuf};

/// A test's own directory.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one, `name` in its path.
    pub fn new(name: &str) -> Scratch {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(root).expect("create target/tmp");
        let dir = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(root);
        Scratch(dir.expect("create a scratch directory").keep())
    }

    /// That of another process, for one that is going to be killed.
    pub fn at(path: PathBuf) -> Scratch {
        Scratch(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for inspection: {}", self.0.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
