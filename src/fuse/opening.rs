//! OPEN and RELEASE: who has which file open, and what follows from that.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, Errno, FopenFlags};
use parking_lot::RwLockReadGuard;

use super::handles::Handle;
use super::inodes::{Node, What};
use super::modes::{self, Mode};
use super::permissions::{Caller, READ, WRITE};
use super::tree::Tree;
use super::{errno, names, virtuals};
use crate::db::{FileKind, OpenHow};

/// The reply to an open.
#[derive(Debug)]
pub(super) struct Opened {
    pub fh: u64,
    pub flags: FopenFlags,
    pub backing: Option<Arc<BackingId>>,
}

/// Registers a backing file with the kernel.
pub(super) type Register<'a> = &'a dyn Fn(&File) -> io::Result<BackingId>;

/// How an open came about.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// Whether it may write.
    pub write: bool,
    /// Whether it made the file.
    pub created: bool,
    /// Whether the daemon itself opens.
    pub own: bool,
}

impl Tree {
    /// OPEN.
    pub(super) fn open(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
        register: Register<'_>,
    ) -> Result<Opened, Errno> {
        let _open = self.may_open(caller)?;
        self.open_there(caller, ino, flags, register)
    }

    /// Opens what is there; [`Tree::may_open`] was asked.
    pub(super) fn open_there(
        &self,
        caller: Caller,
        ino: u64,
        flags: i32,
        register: Register<'_>,
    ) -> Result<Opened, Errno> {
        let node = self.node(ino)?;
        let own = self.own.is(caller.pid);
        let (read, write) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            _ => (true, true),
        };
        if self.check && !own {
            let wanted = if read { READ } else { 0 } | if write { WRITE } else { 0 };
            self.may_search(caller, names::split(&node.path).0)?;
            if !matches!(node.what, What::Lock(_)) && !caller.may(wanted, &self.node_metadata(&node)?) {
                return Err(Errno::EACCES);
            }
        }
        match &node.what {
            What::Dir => Err(Errno::EISDIR),
            // For writing: `open_lock`.
            What::Lock(_) if write => Err(Errno::EACCES),
            What::Lock(_) => Ok(self.open_text(node, Some(String::new()))),
            What::Pos(_) | What::Primary | What::Lag if write => Err(Errno::EACCES),
            What::Pos(_) => Ok(self.open_text(node, None)),
            What::Primary => {
                let text = virtuals::primary(&self.store.role()).ok_or(Errno::ENOENT)?;
                Ok(self.open_text(node, Some(text)))
            }
            What::Lag => {
                let text = virtuals::lag(&self.store.role(), self.store.lag());
                Ok(self.open_text(node, Some(text)))
            }
            _ if node.gone() => Err(Errno::ENOENT),
            What::SuperJournal(backing) => {
                let file = File::options().read(true).write(write).open(backing);
                let file = file.map(Arc::new).map_err(|error| errno::of_io(&error))?;
                self.opened(node, file, How { write, created: false, own }, register)
            }
            What::File(db, FileKind::Database) if !own && db.is_hidden() => Err(Errno::ENOENT),
            What::File(db, kind) => {
                if !own && write && *kind == FileKind::Database {
                    self.store.wanted();
                }
                let file = if own {
                    File::options()
                        .read(true)
                        .write(true)
                        .open(db.path(*kind))
                        .map(Arc::new)
                        .map_err(|error| errno::of_io(&error))
                } else {
                    let how = OpenHow { write, ..OpenHow::default() };
                    db.open(*kind, how).map_err(errno::report)
                }?;
                self.opened(node, file, How { write, created: false, own }, register)
            }
        }
    }

    /// Files are opened until the mount ends, and it does not end while the guard lives.
    pub(super) fn may_open(&self, caller: Caller) -> Result<RwLockReadGuard<'_, bool>, Errno> {
        let closing = self.closing.read();
        if *closing && !self.own.is(caller.pid) { Err(Errno::ENOTCONN) } else { Ok(closing) }
    }

    /// Opens nothing more if no application has anything open.
    pub(super) fn close_unused(&self) -> bool {
        let mut closing = self.closing.write();
        *closing |= !self.handles.used();
        *closing
    }

    /// Opens nothing more.
    pub(super) fn close(&self) {
        *self.closing.write() = true;
    }

    fn open_text(&self, node: Arc<Node>, text: Option<String>) -> Opened {
        let handle = Handle {
            node,
            file: None,
            text,
            write: false,
            own: false,
            created: false,
            unseen: false,
            wrote: AtomicBool::new(false),
            _halt: None,
        };
        Opened {
            fh: self.handles.insert(handle),
            flags: FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            backing: None,
        }
    }

    /// Hands out an open backing file.
    pub(super) fn opened(
        &self,
        node: Arc<Node>,
        file: Arc<File>,
        how: How,
        register: Register<'_>,
    ) -> Result<Opened, Errno> {
        let mode = match &node.what {
            What::File(_, kind) => {
                let passthrough = self.passthrough.load(Ordering::Acquire);
                modes::of(*kind, passthrough, self.store.archive_first(), self.on_replica(how.own))
            }
            _ => Mode::Cached,
        };
        let wal = matches!(node.what, What::File(_, FileKind::Wal));
        let unseen = wal && !how.own && matches!(mode, Mode::Cached | Mode::Passthrough);
        let passed = matches!(mode, Mode::Passthrough | Mode::Beside);
        let (backing, first) = {
            let mut opens = node.opens();
            if passed && opens.backing.is_none() {
                opens.backing = Some(match self.spares.take(&node.path, &file) {
                    Some(backing) => backing,
                    None => Arc::new(register(&file).map_err(|error| {
                        tracing::error!("cannot pass {} through to its backing file: {error}", node.path);
                        errno::of_io(&error)
                    })?),
                });
            }
            opens.file = Some(file.clone());
            let first = !how.own && opens.apps == 0;
            if how.own {
                opens.own += 1;
            } else {
                opens.apps += 1;
                opens.writers += u32::from(how.write);
                opens.unseen += u32::from(unseen);
            }
            (opens.backing.clone().filter(|_| passed), first)
        };
        self.follow(&node, how, first);
        let wrote = mode == Mode::Passthrough && how.write;
        let flags = modes::flags(mode, wants_flush(&node.what, how, self.commits_may_wait()));
        let handle = Handle {
            node,
            file: Some(file),
            text: None,
            write: how.write,
            own: how.own,
            created: how.created,
            unseen,
            wrote: wrote.into(),
            _halt: None,
        };
        Ok(Opened { fh: self.handles.insert(handle), flags, backing })
    }

    /// What an application opens may change without the daemon seeing it.
    fn follow(&self, node: &Arc<Node>, how: How, first: bool) {
        let What::File(db, kind) = &node.what else { return };
        if how.own {
            return;
        }
        match kind {
            FileKind::Database => {}
            FileKind::Journal if how.write => self.watch.journal(node.ino, db),
            FileKind::Journal => {}
            FileKind::Wal if first => self.watch.wal(node.ino, db),
            FileKind::Wal => {}
            FileKind::Shm => {
                db.shm_opened();
                if first {
                    self.own.appeared(node);
                }
            }
        }
    }

    /// RELEASE. May take long if `slow_release`.
    pub(super) fn release(&self, handle: &Handle) {
        let node = &handle.node;
        let What::File(db, kind) = &node.what else { return };
        let (apps, writers, let_go) = {
            let mut opens = node.opens();
            if handle.own {
                opens.own = opens.own.saturating_sub(1);
            } else {
                opens.apps = opens.apps.saturating_sub(1);
                opens.writers = opens.writers.saturating_sub(u32::from(handle.write));
                opens.unseen = opens.unseen.saturating_sub(u32::from(handle.unseen));
            }
            let unused = opens.apps + opens.own == 0;
            let let_go = unused.then(|| (opens.backing.take(), opens.file.take()));
            (opens.apps, opens.writers, let_go)
        };
        if let Some((Some(backing), Some(file))) = let_go
            && handle.created
            && *kind == FileKind::Journal
            && !node.gone()
        {
            self.spares.put(&node.path, file, backing);
        }
        if handle.own {
            return;
        }
        if apps == 0 {
            match kind {
                FileKind::Database => {}
                FileKind::Journal | FileKind::Wal => self.watch.closed(node.ino),
                FileKind::Shm => self.own.vanished(node.ino),
            }
        }
        if !node.gone() {
            let last = if handle.write { writers == 0 } else { apps == 0 };
            db.close(*kind, last, handle.wrote.load(Ordering::Acquire));
        }
    }

    /// The mount has ended: closes what the kernel had no time to release.
    pub(super) fn end(&self) {
        for handle in self.handles.drain() {
            self.release(&handle);
        }
        self.spares.clear();
        self.store.unset_mount();
    }

    /// Whether closing may take long: the end of a copied-in file is its import.
    pub(super) fn slow_release(&self, handle: &Handle) -> bool {
        matches!(handle.node.what, What::File(_, FileKind::Database)) && handle.wrote.load(Ordering::Acquire)
    }
}

/// Whether each close(2) is to be told, and waited for: a PERSIST or TRUNCATE commit of
/// a journal that was there already may show no earlier, and what `cp` made is imported
/// before `cp` ends. Not for a journal made anew, as in DELETE mode: its end is the
/// unlink, and the round trip would be one more per transaction; unless the commit waits
/// for the archive, and had better wait there.
fn wants_flush(what: &What, how: How, may_wait: bool) -> bool {
    match what {
        What::File(_, FileKind::Journal) => how.write && (!how.created || may_wait),
        What::File(_, FileKind::Database) => how.write && how.created,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_super_journal_needs_no_flush() {
        let how = How { write: true, created: true, own: false };
        assert!(!wants_flush(&What::SuperJournal(PathBuf::new()), how, true));
    }
}
