//! Open files, by the number that the kernel gives back with every request.
//! Must not touch files.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::inodes::Node;

/// An open file.
pub(super) struct Handle {
    /// What is open.
    pub node: Arc<Node>,
    /// The backing file; none for what is made up at reading.
    pub file: Option<Arc<File>>,
    /// What `.primary` and `.lag` said when they were opened.
    pub text: Option<String>,
    /// Whether it may write.
    pub write: bool,
    /// Whether the daemon opened it.
    pub own: bool,
    /// Whether its open made the file.
    pub created: bool,
    /// Whether it is an application's handle of a WAL whose writes need not come to the
    /// daemon one by one.
    pub unseen: bool,
    /// Whether writes may have happened that only the kernel saw, or did happen.
    pub wrote: AtomicBool,
    /// Of `<db>-lock`: the lock.
    pub _halt: Option<super::halting::HaltGuard>,
}

impl Handle {
    /// A write of thread `writer` comes through it.
    pub(super) fn note_write(&self, writer: u32) {
        self.wrote.store(true, Ordering::Release);
        self.node.writer.store(writer, Ordering::Release);
        self.node.writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// All open files of a mount.
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles { open: RwLock::default(), next: AtomicU64::new(1) }
    }

    pub(super) fn insert(&self, handle: Handle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.read().get(&fh).cloned()
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.write().remove(&fh)
    }

    /// Whether an application has a file open.
    pub(super) fn used(&self) -> bool {
        self.open.read().values().any(|handle| !handle.own)
    }

    /// Takes every handle: what is still open when the mount has ended.
    pub(super) fn drain(&self) -> Vec<Arc<Handle>> {
        self.open.write().drain().map(|(_, handle)| handle).collect()
    }
}
