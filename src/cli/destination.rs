//! A file that a command writes: beside its place first, and put there only when it
//! is whole; what was there before stays until then. Must not know what is in it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::CliError;

/// The files beside a database that belong to its content: an old one would be
/// played back into a new database.
const BESIDE: [&str; 3] = ["-journal", "-wal", "-shm"];

/// A file in the making; dropped without `finish`, it is removed.
pub struct Destination {
    to: PathBuf,
    temp: PathBuf,
    force: bool,
}

impl Destination {
    /// Refuses if there is a file at `to` (or one that belongs to a database there),
    /// unless it may be replaced. Makes directories as needed.
    pub fn new(to: &Path, force: bool) -> Result<Destination, CliError> {
        if to.is_dir() {
            return Err(CliError::usage(format!("{} is a directory; name the file to write", to.display())));
        }
        let name = to
            .file_name()
            .ok_or_else(|| CliError::usage(format!("{} is not the name of a file", to.display())))?;
        if !force && let Some(there) = present(to) {
            return Err(CliError::usage(format!(
                "{} is there already; choose another name, or replace it with --force",
                there.display()
            )));
        }
        let dir = dir_of(to);
        std::fs::create_dir_all(&dir).map_err(CliError::io(format!("making directory {}", dir.display())))?;
        let temp = dir.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        // One of a process that is gone and had this id.
        match std::fs::remove_file(&temp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CliError::io(format!("removing {}", temp.display()))(error));
            }
            _ => {}
        }
        Ok(Destination { to: to.to_owned(), temp, force })
    }

    /// Where to write: a file that is not there yet.
    pub fn temp(&self) -> &Path {
        &self.temp
    }

    /// Puts the file, whole and durable, at its place.
    pub fn finish(self) -> Result<(), CliError> {
        let attempt = format!("writing {}", self.to.display());
        self.put().map_err(CliError::io(attempt))
    }

    fn put(&self) -> io::Result<()> {
        File::open(&self.temp)?.sync_all()?;
        if self.force {
            for suffix in BESIDE {
                match std::fs::remove_file(beside(&self.to, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            std::fs::rename(&self.temp, &self.to)?;
        } else {
            rename_if_free(&self.temp, &self.to)?;
        }
        File::open(dir_of(&self.to))?.sync_all()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // After a rename there is none left, and a leftover does no harm.
        let _ = std::fs::remove_file(&self.temp);
    }
}

/// Unlike rename(2), replaces nothing that came meanwhile; where the file system
/// cannot do that (renameat2(2): EINVAL), it looks first.
fn rename_if_free(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
        done => return Ok(done?),
    }
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

fn dir_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn present(to: &Path) -> Option<PathBuf> {
    let all = std::iter::once(to.to_owned()).chain(BESIDE.map(|suffix| beside(to, suffix)));
    all.into_iter().find(|path| path.symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_until_the_new_file_is_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, wal) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
        std::fs::write(&file, "old").expect("write");
        std::fs::write(&wal, "old wal").expect("write");
        assert!(matches!(Destination::new(&file, false), Err(CliError::Usage(_))));

        let broken = Destination::new(&file, true).expect("a destination");
        std::fs::write(broken.temp(), "half").expect("write");
        drop(broken);
        assert_eq!(std::fs::read(&file).expect("read"), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2);

        let whole = Destination::new(&file, true).expect("a destination");
        std::fs::write(whole.temp(), "new").expect("write");
        whole.finish().expect("finish");
        assert_eq!(std::fs::read(&file).expect("read"), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("deep/er/a.db");
        let new = Destination::new(&file, false).expect("a destination");
        std::fs::write(new.temp(), "new").expect("write");
        std::fs::write(&file, "theirs").expect("write");
        assert!(new.finish().is_err());
        assert_eq!(std::fs::read(&file).expect("read"), b"theirs");
    }

    #[test]
    fn a_stale_wal_beside_a_new_database_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("a.db-wal"), "stale").expect("write");
        assert!(Destination::new(&dir.path().join("a.db"), false).is_err());
        assert!(Destination::new(dir.path(), true).is_err());
    }
}
