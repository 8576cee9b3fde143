//! The tree of files: what each request means for the store. Must not know how the
//! kernel frames requests, nor which thread runs them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::Sender;
use fuser::{Errno, FileAttr};
use parking_lot::RwLock;

use super::attributes::{self, LONG, NEVER};
use super::halting::Halts;
use super::handles::{Handle, Handles};
use super::inodes::{Inodes, Node, What};
use super::names::{self, Name};
use super::notify::Note;
use super::own::Own;
use super::permissions::{Caller, EXECUTE};
use super::spares::Spares;
use super::unsynced::Unsynced;
use super::watch::Watch;
use super::{errno, virtuals};
use crate::db::{DbError, FileKind};
use crate::store::Store;

/// Everything that requests work on.
pub(super) struct Tree {
    pub store: Arc<Store>,
    pub inodes: Arc<Inodes>,
    pub handles: Handles,
    pub own: Arc<Own>,
    pub watch: Arc<Watch>,
    pub notes: Sender<Note>,
    pub unsynced: Unsynced,
    pub spares: Spares,
    /// Whether journal, WAL and shm are passed through; settled before the first open.
    pub passthrough: AtomicBool,
    /// Where halt locks come from.
    pub halts: OnceLock<Arc<dyn Halts>>,
    /// Nothing is opened any more: the mount is ending.
    pub closing: RwLock<bool>,
    /// Whether rights are checked: where only the owner may enter, there is no need.
    pub check: bool,
    /// The directory below the mount: its mode and owner are the root's.
    pub under: File,
}

/// What a name turned out to be.
pub(super) enum Found {
    /// An inode; the kernel may trust it that long.
    Entry(Arc<Node>, FileAttr, Duration),
    /// Nothing; the kernel may trust it that long.
    Nothing(Duration),
}

impl Tree {
    /// The inode `ino`.
    pub(super) fn node(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        self.inodes.get(ino).ok_or(Errno::from_i32(libc::ESTALE))
    }

    /// The open file `fh`.
    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.get(fh).ok_or(Errno::EBADF)
    }

    /// The path of `name` in directory `parent`; the caller must be able to search it.
    pub(super) fn child(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
    ) -> Result<(Arc<Node>, String), Errno> {
        let parent = self.node(parent)?;
        if !matches!(parent.what, What::Dir) {
            return Err(Errno::ENOTDIR);
        }
        self.may_search(caller, &parent.path)?;
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        let path = names::join(&parent.path, name);
        Ok((parent, path))
    }

    /// Whether the caller may search `dir` and everything above it.
    pub(super) fn may_search(&self, caller: Caller, dir: &str) -> Result<(), Errno> {
        self.may_dirs(caller, EXECUTE, dir)?;
        let mut above = dir;
        while !above.is_empty() {
            above = names::split(above).0;
            self.may_dirs(caller, EXECUTE, above)?;
        }
        Ok(())
    }

    /// Whether the caller has the `wanted` rights on a directory.
    pub(super) fn may_dirs(&self, caller: Caller, wanted: u32, dir: &str) -> Result<(), Errno> {
        if !self.check || caller.uid == 0 || caller.may(wanted, &self.dir_metadata(dir)?) {
            return Ok(());
        }
        Err(Errno::EACCES)
    }

    /// LOOKUP.
    pub(super) fn lookup(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<Found, Errno> {
        let (_, path) = match self.child(caller, parent, name) {
            Err(Errno::EINVAL) => return Ok(Found::Nothing(LONG)),
            child => child?,
        };
        self.find(&path)
    }

    /// What is at `path`.
    pub(super) fn find(&self, path: &str) -> Result<Found, Errno> {
        let Some(what) = self.what(path) else { return Ok(Found::Nothing(absent_for(path))) };
        // The attributes first: what is not there gets no inode.
        let metadata = match self.metadata(&what, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Found::Nothing(absent_for(path)));
            }
            metadata => metadata.map_err(|error| errno::of_io(&error))?,
        };
        let trusted = trusted_for(&what);
        let node = self.inodes.intern(path, what);
        let attr = self.attr_from(&node, &metadata);
        Ok(Found::Entry(node, attr, trusted))
    }

    fn what(&self, path: &str) -> Option<What> {
        if let Some(backing) = self.store.super_journal(path) {
            return Some(What::SuperJournal(backing));
        }
        let what = match names::parse(path) {
            Some(Name::File(db, kind)) => self.store.database(&db).map(|db| What::File(db, kind)),
            Some(Name::Pos(db)) => self.store.database(&db).map(What::Pos),
            Some(Name::Lock(db)) => self.store.database(&db).map(|_| What::Lock(db)),
            Some(Name::Primary) => virtuals::primary(&self.store.role()).map(|_| What::Primary),
            Some(Name::Lag) => Some(What::Lag),
            None => None,
        };
        what.or_else(|| self.store.dir_path(path).map(|_| What::Dir))
    }

    /// The backing file's metadata; for what has none, that of the database or root.
    fn metadata(&self, what: &What, path: &str) -> io::Result<Metadata> {
        match what {
            What::Dir if path.is_empty() => self.under.metadata(),
            What::Dir => match self.store.dir_path(path) {
                Some(path) => std::fs::metadata(path),
                None => Err(io::ErrorKind::NotFound.into()),
            },
            What::File(db, kind) if db.is_retired(*kind) => Err(io::ErrorKind::NotFound.into()),
            What::File(db, kind) => std::fs::metadata(db.path(*kind)),
            What::Pos(db) => std::fs::metadata(db.path(FileKind::Database)),
            What::SuperJournal(backing) => std::fs::metadata(backing),
            What::Lock(_) | What::Primary | What::Lag => self.under.metadata(),
        }
    }

    /// The metadata of a directory.
    pub(super) fn dir_metadata(&self, dir: &str) -> Result<Metadata, Errno> {
        self.metadata(&What::Dir, dir).map_err(|error| errno::of_io(&error))
    }

    /// The metadata behind an inode, also when it was unlinked.
    pub(super) fn node_metadata(&self, node: &Node) -> Result<Metadata, Errno> {
        let kept = if node.gone() { node.opens().file.clone() } else { None };
        let metadata = match kept {
            Some(file) => file.metadata(),
            None => self.metadata(&node.what, &node.path),
        };
        metadata.map_err(|error| errno::of_io(&error))
    }

    fn attr_from(&self, node: &Node, metadata: &Metadata) -> FileAttr {
        let made_up = |size| attributes::made_up(node.ino, size, metadata);
        match &node.what {
            What::Dir | What::File(..) | What::SuperJournal(_) => attributes::of(node.ino, metadata),
            What::Pos(_) => made_up(virtuals::POS_SIZE),
            What::Lag => made_up(virtuals::LAG_SIZE),
            What::Primary => {
                made_up(virtuals::primary(&self.store.role()).map_or(0, |text| text.len() as u64))
            }
            What::Lock(_) => made_up(0),
        }
    }

    /// GETATTR.
    pub(super) fn attributes(&self, node: &Node) -> Result<(FileAttr, Duration), Errno> {
        Ok(self.attributes_from(node, &self.node_metadata(node)?))
    }

    /// What the kernel is told of an inode with this metadata, and how long it may trust it.
    pub(super) fn attributes_from(&self, node: &Node, metadata: &Metadata) -> (FileAttr, Duration) {
        (self.attr_from(node, metadata), trusted_for(&node.what))
    }

    /// READ into `buf`, which is then as long as what was read.
    pub(super) fn read(&self, handle: &Handle, offset: u64, buf: &mut Vec<u8>) -> Result<(), Errno> {
        let count = match (&handle.node.what, &handle.file) {
            (What::File(db, kind), _) if !handle.node.gone() => {
                db.read(*kind, offset, buf).map_err(errno::report)?
            }
            (_, Some(file)) => read_up_to(file, offset, buf).map_err(|error| errno::of_io(&error))?,
            (What::Pos(db), None) => {
                let text = virtuals::pos(db.current_pos().map_err(errno::report)?);
                copy_at(text.as_bytes(), offset, buf)
            }
            (_, None) => copy_at(handle.text.as_deref().unwrap_or_default().as_bytes(), offset, buf),
        };
        buf.truncate(count);
        Ok(())
    }

    /// WRITE.
    pub(super) fn write(
        &self,
        caller: Caller,
        handle: &Handle,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        handle.note_write(caller.pid);
        match (&handle.node.what, &handle.file) {
            (What::File(db, FileKind::Wal), _) if !handle.own && db.has_no_room() => {
                Err(errno::report(DbError::Full { db: db.name().clone() }))
            }
            (What::File(db, kind), _) if !handle.node.gone() => {
                db.write(*kind, offset, data).map_err(errno::report)
            }
            (_, Some(file)) => file.write_all_at(data, offset).map_err(|error| errno::of_io(&error)),
            (_, None) => Err(Errno::EACCES),
        }
    }

    /// WRITE, if it takes no longer than the write itself.
    pub(super) fn write_at_once(
        &self,
        caller: Caller,
        handle: &Handle,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<(), Errno>> {
        match &handle.node.what {
            What::File(db, FileKind::Database) if !handle.node.gone() => {
                let done = db.write_at_once(FileKind::Database, offset, data)?;
                handle.note_write(caller.pid);
                Some(done.map_err(errno::report))
            }
            _ => Some(self.write(caller, handle, offset, data)),
        }
    }

    /// Whether an fsync waits for the disk only, never for an answer of the mount.
    pub(super) fn sync_asks_nobody(&self, handle: &Handle) -> bool {
        match &handle.node.what {
            What::File(db, kind) => *kind == FileKind::Wal || db.write_is_quick(*kind),
            _ => true,
        }
    }

    /// FSYNC.
    pub(super) fn sync(&self, handle: &Handle) -> Result<(), Errno> {
        match (&handle.node.what, &handle.file) {
            (What::File(db, FileKind::Journal), _) if !handle.node.gone() => {
                let dir = names::split(&handle.node.path).0;
                let backing = db.path(FileKind::Journal);
                let changes = self.unsynced.changes(dir, &backing);
                db.sync(FileKind::Journal).map_err(errno::report)?;
                self.unsynced.done(dir, &backing, changes);
                Ok(())
            }
            (What::File(db, kind), _) if !handle.node.gone() => db.sync(*kind).map_err(errno::report),
            (_, Some(file)) => file.sync_all().map_err(|error| errno::of_io(&error)),
            (_, None) => Ok(()),
        }
    }

    /// FLUSH: one of the descriptors of an open file is being closed.
    pub(super) fn flush(&self, handle: &Handle) -> Result<(), Errno> {
        match &handle.node.what {
            What::File(db, kind) if handle.write && !handle.own && !handle.node.gone() => {
                db.flush(*kind).map_err(errno::report)
            }
            _ => Ok(()),
        }
    }

    /// FSYNCDIR.
    pub(super) fn sync_dir(&self, ino: u64) -> Result<(), Errno> {
        let dir = self.node(ino)?;
        self.unsynced.sync(&dir.path).map_err(|error| {
            tracing::error!("cannot make the names in directory {:?} durable: {error}", dir.path);
            errno::of_io(&error)
        })
    }

    /// The backing path of the root for calls that take a path.
    pub(super) fn under_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.under.as_raw_fd()))
    }
}

/// How long the kernel may trust an inode's attributes and name.
fn trusted_for(what: &What) -> Duration {
    match what {
        What::Dir | What::File(..) | What::SuperJournal(_) => LONG,
        What::Pos(_) | What::Lock(_) | What::Primary | What::Lag => NEVER,
    }
}

/// How long it may trust that there is no such name.
fn absent_for(path: &str) -> Duration {
    match names::parse(path) {
        Some(Name::File(..)) | None => LONG,
        Some(Name::Pos(_) | Name::Lock(_) | Name::Primary | Name::Lag) => NEVER,
    }
}

fn copy_at(text: &[u8], offset: u64, buf: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|at| text.get(at..)).unwrap_or_default();
    let count = rest.len().min(buf.len());
    buf[..count].copy_from_slice(&rest[..count]);
    count
}

fn read_up_to(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
