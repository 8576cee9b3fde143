//! The inodes that the kernel knows. A number is never used twice: a journal that is
//! made anew is another file, and the kernel may still hold the old one open.
//! Must not touch files.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fuser::BackingId;
use parking_lot::{Mutex, MutexGuard};

use crate::db::{Database, FileKind};
use crate::words::DbName;

/// The root's number, fixed by the protocol.
pub(super) const ROOT: u64 = 1;

/// What an inode is.
#[derive(Clone)]
pub(super) enum What {
    /// A directory.
    Dir,
    /// A file of a database.
    File(Arc<Database>, FileKind),
    /// A super-journal, at this path of the data directory.
    SuperJournal(PathBuf),
    /// `<db>-pos`.
    Pos(Arc<Database>),
    /// `<db>-lock`.
    Lock(DbName),
    /// `.primary`.
    Primary,
    /// `.lag`.
    Lag,
}

impl What {
    /// Whether `other` is the same thing, not merely one of the same name.
    fn same(&self, other: &What) -> bool {
        match (self, other) {
            (What::File(a, kind), What::File(b, other)) => kind == other && Arc::ptr_eq(a, b),
            (What::Pos(a), What::Pos(b)) => Arc::ptr_eq(a, b),
            (What::SuperJournal(a), What::SuperJournal(b)) => a == b,
            (What::Lock(a), What::Lock(b)) => a == b,
            (What::Dir, What::Dir) | (What::Primary, What::Primary) | (What::Lag, What::Lag) => true,
            _ => false,
        }
    }
}

/// Who has an inode open.
#[derive(Debug, Default)]
pub(super) struct Opens {
    /// Handles of applications.
    pub apps: u32,
    /// Those of them that may write.
    pub writers: u32,
    /// Those of a WAL whose writes need not come to the daemon one by one.
    pub unseen: u32,
    /// Handles of the daemon itself.
    pub own: u32,
    /// Shared by every handle: two backing files on one inode make an open fail
    /// (`fuse_inode_uncached_io_start`). Gone with the last handle.
    pub backing: Option<Arc<BackingId>>,
    /// A backing file that a handle was opened with: what is left of an unlinked file.
    pub file: Option<Arc<File>>,
}

/// An inode.
pub(super) struct Node {
    /// Its number.
    pub ino: u64,
    /// Its path below the mount, without leading slash; empty for the root.
    pub path: String,
    /// What it is.
    pub what: What,
    /// Writes since the last journal ended, of a database.
    pub writes: AtomicU32,
    /// The thread that wrote last; 0: not known.
    pub writer: AtomicU32,
    gone: AtomicBool,
    opens: Mutex<Opens>,
}

impl Node {
    /// Whether it was unlinked.
    pub(super) fn gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether nobody has it open.
    pub(super) fn is_unused(&self) -> bool {
        let opens = self.opens();
        opens.apps + opens.own == 0
    }

    /// Who has it open. A leaf lock but for the kernel's list of backing files.
    pub(super) fn opens(&self) -> MutexGuard<'_, Opens> {
        self.opens.lock()
    }
}

struct Tables {
    by_ino: HashMap<u64, (Arc<Node>, u64)>,
    by_path: HashMap<String, Arc<Node>>,
    next: u64,
}

/// All inodes of a mount.
pub(super) struct Inodes(Mutex<Tables>);

impl Inodes {
    pub(super) fn new() -> Inodes {
        let tables = Tables { by_ino: HashMap::new(), by_path: HashMap::new(), next: ROOT };
        let inodes = Inodes(Mutex::new(tables));
        inodes.intern("", What::Dir);
        inodes
    }

    /// By number.
    pub(super) fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.0.lock().by_ino.get(&ino).map(|(node, _)| node.clone())
    }

    /// By path, if the kernel knows it.
    pub(super) fn at(&self, path: &str) -> Option<Arc<Node>> {
        self.0.lock().by_path.get(path).cloned()
    }

    /// The inode of the thing at `path`, made if there is none; counts one lookup.
    pub(super) fn intern(&self, path: &str, what: What) -> Arc<Node> {
        let mut tables = self.0.lock();
        if let Some(node) = tables.by_path.get(path).cloned()
            && node.what.same(&what)
        {
            if let Some((_, lookups)) = tables.by_ino.get_mut(&node.ino) {
                *lookups += 1;
            }
            return node;
        }
        tables.retire(path);
        let ino = tables.next;
        tables.next += 1;
        let node = Arc::new(Node {
            ino,
            path: path.to_owned(),
            what,
            writes: AtomicU32::new(0),
            writer: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            opens: Mutex::default(),
        });
        tables.by_ino.insert(ino, (node.clone(), 1));
        tables.by_path.insert(path.to_owned(), node.clone());
        node
    }

    /// The thing at `path` is no more.
    pub(super) fn remove(&self, path: &str) -> Option<Arc<Node>> {
        self.0.lock().retire(path)
    }

    /// The kernel forgets `count` lookups; at none the inode goes.
    pub(super) fn forget(&self, ino: u64, count: u64) {
        if ino == ROOT {
            return;
        }
        let mut tables = self.0.lock();
        let Some((node, lookups)) = tables.by_ino.get_mut(&ino) else { return };
        *lookups = lookups.saturating_sub(count);
        if *lookups > 0 {
            return;
        }
        let node = node.clone();
        tables.by_ino.remove(&ino);
        if tables.by_path.get(&node.path).is_some_and(|at| at.ino == ino) {
            tables.by_path.remove(&node.path);
        }
    }
}

impl Tables {
    fn retire(&mut self, path: &str) -> Option<Arc<Node>> {
        let node = self.by_path.remove(path)?;
        node.gone.store(true, Ordering::Release);
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(name: &str) -> What {
        What::Lock(DbName::new(name).expect("a name"))
    }

    #[test]
    fn a_number_stays_while_the_file_does_and_is_never_used_again() {
        let inodes = Inodes::new();
        let first = inodes.intern("a", lock("a"));
        assert_eq!(inodes.intern("a", lock("a")).ino, first.ino);
        inodes.remove("a");
        assert!(first.gone());
        let second = inodes.intern("a", lock("a"));
        assert_ne!(second.ino, first.ino);
        assert!(inodes.get(first.ino).is_some(), "the kernel has not forgotten it");
    }

    #[test]
    fn an_inode_goes_when_every_lookup_is_forgotten() {
        let inodes = Inodes::new();
        let node = inodes.intern("a", lock("a"));
        inodes.intern("a", lock("a"));
        inodes.forget(node.ino, 1);
        assert!(inodes.get(node.ino).is_some());
        inodes.forget(node.ino, 1);
        assert!(inodes.get(node.ino).is_none());
        assert!(inodes.at("a").is_none());
        inodes.forget(ROOT, 5);
        assert!(inodes.get(ROOT).is_some());
    }

    #[test]
    fn another_thing_of_the_same_name_is_another_inode() {
        let inodes = Inodes::new();
        let dir = inodes.intern("a", What::Dir);
        let file = inodes.intern("a", lock("a"));
        assert_ne!(dir.ino, file.ino);
        assert!(dir.gone());
        inodes.forget(dir.ino, 1);
        assert_eq!(inodes.at("a").map(|node| node.ino), Some(file.ino));
    }
}
