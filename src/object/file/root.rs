//! The directory of a store: that it is there and still the same one, its lock, its
//! temporary files. Must not know objects.
//!
//! Lock order: the process's lock, then the file lock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use crate::words::Timestamp;

/// Marks a directory as a store, and is what the lock is taken on.
const MARKER: &str = ".litefs-store";
/// Where files are written before they get their key; in the same file system.
const TEMP: &str = ".litefs-tmp";
/// How long to wait for another process's lock. It is held for a rename, never
/// while data is written; only a process that was stopped holds it longer.
const LOCK_DEADLINE: Duration = Duration::from_secs(20);

/// What to do where a store that has to be there is not.
const REMEDY: &str = "mount its disk, or correct storage.url (a new archive is only made by a node with an empty data directory)";

/// Whether a key is one of the store's own files.
pub(super) fn is_reserved(key: &str) -> bool {
    let first = key.split('/').next().unwrap_or(key);
    first == MARKER || first == TEMP
}

/// The directory of a store.
pub(super) struct Root {
    path: PathBuf,
    known: Mutex<Known>,
    lock: Mutex<()>,
}

/// What is known of the directory, and so what it means that it is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing: it is not made yet.
    Nothing,
    /// It was used before, by an earlier process: it is out of reach where it is missing
    /// or, its disk not mounted, empty.
    Exists,
    /// The marker was seen: it is out of reach where that is missing.
    Seen,
}

/// The store's lock, against threads and other processes.
pub(super) struct Guard<'a> {
    _file: File,
    _thread: MutexGuard<'a, ()>,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Root {
        Root { path, known: Mutex::new(Known::Nothing), lock: Mutex::new(()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// From now on a directory that is missing or empty is out of reach.
    pub(super) fn expect_existing(&self) {
        let mut known = self.known.lock();
        if *known == Known::Nothing {
            *known = Known::Exists;
        }
    }

    /// Whether there is a store; `false` for a directory that has not been made yet.
    pub(super) fn attach(&self) -> io::Result<bool> {
        match fs::symlink_metadata(self.path.join(MARKER)) {
            Ok(_) => {
                let mut known = self.known.lock();
                if *known != Known::Seen {
                    remove_dead_temps(&self.path.join(TEMP));
                    *known = Known::Seen;
                }
                Ok(true)
            }
            Err(error) if super::is_absent(&error) => self.attach_unmarked(),
            Err(error) => Err(error),
        }
    }

    fn attach_unmarked(&self) -> io::Result<bool> {
        let known = *self.known.lock();
        if known == Known::Seen {
            return Err(gone(&format!(
                "the archive's directory was there and is gone (no {MARKER} in it); mount its disk again, or restart litefs if it was removed on purpose"
            )));
        }
        match fs::metadata(&self.path) {
            Ok(meta) if !meta.is_dir() => Err(Errno::NOTDIR.into()),
            // A mount point without its disk.
            Ok(_) if known == Known::Exists && fs::read_dir(&self.path)?.next().is_none() => {
                Err(gone(&format!("the archive's directory is empty; {REMEDY}")))
            }
            // Objects without the marker: a copy of a store, made without dot files.
            Ok(_) => Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) if known == Known::Exists => {
                Err(gone(&format!("the archive's directory is not there; {REMEDY}")))
            }
            Err(_) => Ok(false),
        }
    }

    /// Makes the store, if there is none yet and none has to be there.
    pub(super) fn create(&self) -> io::Result<()> {
        let known = *self.known.lock();
        if known != Known::Nothing {
            self.attach()?;
        }
        if *self.known.lock() == Known::Seen {
            return Ok(());
        }
        let missing = self.path.ancestors().take_while(|path| !path.exists()).count();
        if known == Known::Nothing {
            fs::create_dir_all(&self.path)?;
        }
        OpenOptions::new().create(true).append(true).open(self.path.join(MARKER))?.sync_all()?;
        match fs::create_dir(self.path.join(TEMP)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for directory in self.path.ancestors().take(missing + 1) {
            sync_directory(directory)?;
        }
        self.attach().map(drop)
    }

    /// Takes the store's lock: conditions are checked and names change only under it.
    pub(super) fn lock(&self) -> io::Result<Guard<'_>> {
        let thread = self.lock.lock();
        // An exclusive flock on NFS needs a file that is open for writing (flock(2)).
        let file = OpenOptions::new().append(true).open(self.path.join(MARKER))?;
        let begin = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Guard { _file: file, _thread: thread }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if begin.elapsed() < LOCK_DEADLINE => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!(
                            "another process has held the lock on {MARKER} for 20 s; see who with lsof, it may be stopped"
                        ),
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A new temporary file.
    pub(super) fn temp(&self) -> io::Result<Temp> {
        let directory = self.path.join(TEMP);
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
            let path = directory.join(format!("{:016x}", u64::from_ne_bytes(random)));
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&directory)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let temp = Temp { path, file, placed: false };
            // The lock tells those who clean up that the writer lives. One of them
            // may have come between: then the file has no name any more.
            rustix::fs::flock(&temp.file, FlockOperation::LockExclusive)?;
            if rustix::fs::fstat(&temp.file)?.st_nlink > 0 {
                return Ok(temp);
            }
        }
    }

    /// Makes the directories above `path`, durably; under the lock, so that nobody
    /// relies on one that a power cut would take away.
    pub(super) fn make_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        let missing: Vec<&Path> = parent.ancestors().take_while(|path| !path.is_dir()).collect();
        for directory in missing.iter().rev() {
            fs::create_dir(directory)?;
            sync_directory(directory.parent().unwrap_or(&self.path))?;
        }
        Ok(())
    }

    /// Makes the name `path` durable.
    pub(super) fn sync_parent(&self, path: &Path) -> io::Result<()> {
        match sync_directory(path.parent().unwrap_or(&self.path)) {
            // Deleted together with its last object in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes the directories above `path` that have become empty; under the lock.
    pub(super) fn remove_empty_parents(&self, path: &Path) {
        for directory in path.ancestors().skip(1).take_while(|directory| *directory != self.path) {
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match File::open(path)?.sync_all() {
        // Some network file systems cannot fsync a directory (fsync(2), EINVAL);
        // there is nothing to be done about it then.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// A file that is being written; gone unless it gets its name.
pub(super) struct Temp {
    path: PathBuf,
    file: File,
    placed: bool,
}

impl Temp {
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Everything is written: makes the content durable, dated if that is asked for.
    pub(super) fn finish(&mut self, made: Option<Timestamp>) -> io::Result<()> {
        if let Some(made) = made.and_then(|made| u64::try_from(made.millis()).ok()) {
            self.file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(made))?;
        }
        self.file.sync_all()
    }

    /// Gives the file its name, over whatever has it.
    pub(super) fn rename_to(mut self, path: &Path) -> io::Result<()> {
        rustix::fs::renameat_with(CWD, &self.path, CWD, path, RenameFlags::empty())?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.placed {
            let _ = rustix::fs::unlinkat(CWD, &self.path, AtFlags::empty());
        }
    }
}

/// Removes the temporary files of processes that died: nobody holds their lock.
fn remove_dead_temps(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(&path);
        }
    }
}

fn gone(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, why)
}
