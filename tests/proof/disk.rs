//! A disk that forgets: which contents and names were made durable is noted at every
//! fsync of this process, and directories as a loss of power may leave them are made
//! from it. Must not know what the files are.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsString, c_int};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::workload::Random;

/// The directories that are watched.
static DISKS: Mutex<Vec<Weak<Disk>>> = Mutex::new(Vec::new());

/// What is durable of one directory tree.
pub struct Disk {
    root: PathBuf,
    state: Mutex<Durable>,
}

/// Inode and whether it is a directory.
type Entry = (u64, bool);

#[derive(Default)]
struct Durable {
    /// By inode.
    files: HashMap<u64, Vec<u8>>,
    /// By path: directories are never renamed.
    dirs: HashMap<PathBuf, BTreeMap<OsString, Entry>>,
}

/// Takes the place of the C library's function in this program.
// SAFETY: the same signature and effect as fsync(2); no other symbol of this program
// has this name.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(descriptor: c_int) -> c_int {
    note(descriptor);
    // SAFETY: fsync(2) takes any number.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_fsync, descriptor) }).unwrap_or(-1)
}

/// Takes the place of the C library's function in this program.
// SAFETY: as `fsync`.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    note(descriptor);
    // SAFETY: fdatasync(2) takes any number.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_fdatasync, descriptor) }).unwrap_or(-1)
}

fn note(descriptor: c_int) {
    let link = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
    let Ok(path) = fs::read_link(&link) else { return };
    let disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let disk = disks.iter().filter_map(Weak::upgrade).find(|disk| path.starts_with(&disk.root));
    if let Some(disk) = disk {
        disk.durable(&path, &link);
    }
}

fn list(dir: &Path) -> BTreeMap<OsString, Entry> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let found = entry.metadata().ok()?;
        Some((entry.file_name(), (found.ino(), found.is_dir())))
    });
    entries.collect()
}

impl Disk {
    /// Watches `root` from now on; what is there now is durable.
    pub fn watch(root: &Path) -> Arc<Disk> {
        let disk = Arc::new(Disk { root: root.to_owned(), state: Mutex::default() });
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            disk.durable(&dir, &dir);
            for (name, (_, is_dir)) in list(&dir) {
                let path = dir.join(name);
                if is_dir {
                    dirs.push(path);
                } else {
                    disk.durable(&path, &path);
                }
            }
        }
        let mut disks = DISKS.lock().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|disk| disk.strong_count() > 0);
        disks.push(Arc::downgrade(&disk));
        disk
    }

    fn durable(&self, path: &Path, open: &Path) {
        let Ok(found) = fs::metadata(open) else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_dir() {
            state.dirs.insert(path.to_owned(), list(path));
        } else if let Ok(bytes) = fs::read(open) {
            state.files.insert(found.ino(), bytes);
        }
    }

    /// Makes `to` what a loss of power now may leave.
    pub fn lose_power(&self, to: &Path, random: &mut Random) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        contents(&self.root, &mut now);
        state.leave(&self.root, to, &now, random);
    }
}

fn contents(dir: &Path, found: &mut HashMap<u64, Vec<u8>>) {
    for (name, (inode, is_dir)) in list(dir) {
        let path = dir.join(name);
        if is_dir {
            contents(&path, found);
        } else if let Ok(bytes) = fs::read(&path) {
            found.insert(inode, bytes);
        }
    }
}

impl Durable {
    fn leave(&self, dir: &Path, to: &Path, now: &HashMap<u64, Vec<u8>>, random: &mut Random) {
        fs::create_dir_all(to).expect("a directory");
        let (durable, current) = (self.dirs.get(dir).cloned().unwrap_or_default(), list(dir));
        let mut names: Vec<&OsString> = durable.keys().chain(current.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let (before, after) = (durable.get(name), current.get(name));
            let entry = if before == after || random.below(2) == 0 { after } else { before };
            match entry {
                Some((_, true)) => self.leave(&dir.join(name), &to.join(name), now, random),
                Some((inode, false)) => {
                    let bytes = self.content(*inode, now, random);
                    fs::write(to.join(name), bytes).expect("written");
                }
                None => {}
            }
        }
    }

    /// What was made durable, what was written since, or some sectors of each.
    fn content(&self, inode: u64, now: &HashMap<u64, Vec<u8>>, random: &mut Random) -> Vec<u8> {
        const SECTOR: usize = 512;
        let durable = self.files.get(&inode).cloned().unwrap_or_default();
        let current = now.get(&inode).cloned().unwrap_or_else(|| durable.clone());
        match random.below(4) {
            0 => durable,
            1 => current,
            _ => {
                let len = if random.below(2) == 0 { durable.len() } else { current.len() };
                let mut mixed = durable;
                mixed.resize(len, 0);
                for (at, sector) in mixed.chunks_mut(SECTOR).enumerate() {
                    if random.below(2) == 0 {
                        let from = current.get(at * SECTOR..).unwrap_or_default();
                        for (to, byte) in sector.iter_mut().zip(from) {
                            *to = *byte;
                        }
                    }
                }
                mixed
            }
        }
    }
}
