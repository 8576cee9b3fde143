//! CREATE, MKDIR and SETATTR.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, TimeOrNow};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::inodes::{Node, What};
use super::names::{self, Name};
use super::opening::{How, Opened, Register};
use super::permissions::{Caller, EXECUTE, WRITE};
use super::tree::{Found, Tree};
use super::{attributes, errno};
use crate::db::{FileKind, KEPT_EMPTY, OpenHow};

/// What SETATTR changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
}

impl Change {
    /// Whether only the owner is to change.
    fn is_ownership(&self) -> bool {
        let Change { mode, uid, gid, size, atime, mtime } = self;
        let others = mode.is_some() || size.is_some() || atime.is_some() || mtime.is_some();
        !others && (uid.is_some() || gid.is_some())
    }
}

/// What CREATE asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct New {
    pub mode: u32,
    pub flags: i32,
}

/// What CREATE made.
#[derive(Debug)]
pub(super) struct Created {
    pub attr: FileAttr,
    pub opened: Opened,
}

impl Tree {
    /// CREATE.
    pub(super) fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &std::ffi::OsStr,
        new: New,
        register: Register<'_>,
    ) -> Result<Created, Errno> {
        let _open = self.may_open(caller)?;
        let (parent, path) = self.child(caller, parent, name)?;
        let mode = new.mode & 0o7777;
        let exclusive = new.flags & libc::O_EXCL != 0;
        let existing = match self.find(&path)? {
            Found::Entry(node, ..) if exclusive => {
                self.inodes.forget(node.ino, 1);
                return Err(Errno::EEXIST);
            }
            Found::Entry(node, attr, _) => Some((node, attr)),
            Found::Nothing(_) => None,
        };
        if let Some((node, attr)) = existing {
            let opened = self.open_there(caller, node.ino, new.flags, register);
            return match opened {
                Ok(opened) => Ok(Created { attr, opened }),
                Err(error) => {
                    self.inodes.forget(node.ino, 1);
                    Err(error)
                }
            };
        }
        let own = self.own.is(caller.pid);
        let (owner, mode) = if own {
            self.as_database(&path, mode)?
        } else {
            self.may_dirs(caller, WRITE | EXECUTE, &parent.path)?;
            (Owner { uid: caller.uid, gid: self.group(caller, &parent.path)? }, mode)
        };
        let kept = self.is_kept(&path);
        let how =
            OpenHow { write: true, create: true, exclusive, truncate: new.flags & libc::O_TRUNC != 0, mode };
        let (what, file, metadata) = self.make(&path, how, owner)?;
        let backing = match &what {
            What::File(db, kind) => db.path(*kind),
            What::SuperJournal(backing) => backing.clone(),
            _ => return Err(Errno::EIO),
        };
        if let Some(dir) = backing.parent().filter(|_| !kept) {
            self.unsynced.changed(&parent.path, dir);
            if let (What::File(_, FileKind::Database), Some(above)) = (&what, dir.parent()) {
                self.unsynced.changed(&parent.path, above);
            }
        }
        let node = self.inodes.intern(&path, what);
        let mut attr = attributes::of(node.ino, &metadata);
        if kept && attr.size <= KEPT_EMPTY {
            // One whose content was not kept has a byte, which is about to be written over.
            (attr.size, attr.blocks) = (0, 0);
        }
        let how = How { write: new.flags & libc::O_ACCMODE != libc::O_RDONLY, created: true, own };
        let ino = node.ino;
        match self.opened(node, file, how, register) {
            Ok(opened) => Ok(Created { attr, opened }),
            Err(error) => {
                self.inodes.forget(ino, 1);
                Err(error)
            }
        }
    }

    /// Owner and mode of a file that the daemon makes beside a database: the database's,
    /// as SQLite does it (os_unix.c, findCreateFileMode).
    fn as_database(&self, path: &str, mode: u32) -> Result<(Owner, u32), Errno> {
        let Some(Name::File(name, _)) = names::parse(path) else { return Err(Errno::EACCES) };
        let db = self.store.database(&name).ok_or(Errno::ENOENT)?;
        let file = std::fs::metadata(db.path(FileKind::Database)).map_err(|error| errno::of_io(&error))?;
        Ok((
            Owner { uid: file.uid(), gid: file.gid() },
            if file.mode() == 0 { mode } else { file.mode() & 0o7777 },
        ))
    }

    /// Whether the file that is to be made is there: a journal's.
    fn is_kept(&self, path: &str) -> bool {
        match names::parse(path) {
            Some(Name::File(name, kind)) => self.store.database(&name).is_some_and(|db| db.has_kept(kind)),
            _ => false,
        }
    }

    /// Makes a backing file, of the mode and owner that were asked for.
    fn make(&self, path: &str, how: OpenHow, owner: Owner) -> Result<(What, Arc<File>, Metadata), Errno> {
        let of_io = |error| errno::of_io(&error);
        if let Some(backing) = self.store.super_journal(path) {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(how.mode).open(&backing);
            let file = file.map_err(of_io)?;
            let metadata = settle(&file, &backing, how.mode, owner).map_err(of_io)?;
            return Ok((What::SuperJournal(backing), Arc::new(file), metadata));
        }
        // On a replica it is about to be refused, but may be what a node that rests waits for.
        self.store.wanted();
        match names::parse(path) {
            Some(Name::File(name, FileKind::Database)) => {
                let db = self.store.create(&name, how.mode, owner.uid, owner.gid).map_err(errno::report)?;
                let how = OpenHow { write: true, ..OpenHow::default() };
                let file = db.open(FileKind::Database, how).map_err(errno::report)?;
                let metadata = file.metadata().map_err(of_io)?;
                Ok((What::File(db, FileKind::Database), file, metadata))
            }
            Some(Name::File(name, kind)) => {
                let db = self.store.database(&name).ok_or(Errno::ENOENT)?;
                let file = db.open(kind, how).map_err(errno::report)?;
                let metadata = settle(&file, &db.path(kind), how.mode, owner).map_err(of_io)?;
                Ok((What::File(db, kind), file, metadata))
            }
            Some(Name::Pos(_) | Name::Lock(_) | Name::Primary | Name::Lag) => Err(Errno::EACCES),
            None => Err(Errno::EINVAL),
        }
    }

    /// The group of a new file: the directory's if its set-group-id bit says so.
    fn group(&self, caller: Caller, dir: &str) -> Result<u32, Errno> {
        let dir = self.dir_metadata(dir)?;
        Ok(if dir.mode() & libc::S_ISGID != 0 { dir.gid() } else { caller.gid })
    }

    /// MKDIR.
    pub(super) fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &std::ffi::OsStr,
        mode: u32,
    ) -> Result<(FileAttr, Duration), Errno> {
        let (parent, path) = self.child(caller, parent, name)?;
        self.may_dirs(caller, WRITE | EXECUTE, &parent.path)?;
        if !matches!(names::parse(&path), Some(Name::File(_, FileKind::Database))) {
            return Err(Errno::EINVAL);
        }
        let gid = self.group(caller, &parent.path)?;
        self.store.make_dir(&path, mode & 0o7777, caller.uid, gid).map_err(errno::report)?;
        if let Some(above) = self.store.dir_path(&path).as_deref().and_then(Path::parent) {
            self.unsynced.changed(&parent.path, above);
        }
        match self.find(&path)? {
            Found::Entry(_, attr, trusted) => Ok((attr, trusted)),
            Found::Nothing(_) => Err(Errno::ENOENT),
        }
    }

    /// SETATTR. May take long if the size changes.
    pub(super) fn set_attributes(
        &self,
        caller: Caller,
        node: &Node,
        by_handle: bool,
        change: Change,
    ) -> Result<(FileAttr, Duration), Errno> {
        if self.check && caller.uid != 0 {
            let metadata = self.node_metadata(node)?;
            may_change(caller, &metadata, by_handle, change)?;
        }
        if change.is_ownership() {
            // SQLite run by root gives each journal the owner that it has.
            let metadata = self.node_metadata(node)?;
            if change.uid.is_none_or(|uid| uid == metadata.uid())
                && change.gid.is_none_or(|gid| gid == metadata.gid())
            {
                return Ok(self.attributes_from(node, &metadata));
            }
        }
        match &node.what {
            What::File(db, kind) if !node.gone() => {
                if let Some(size) = change.size {
                    db.resize(*kind, size).map_err(errno::report)?;
                }
                if change.mode.is_some() || change.uid.is_some() || change.gid.is_some() {
                    let mode = change.mode.map(|mode| mode & 0o7777);
                    db.set_attributes(*kind, mode, change.uid, change.gid).map_err(errno::report)?;
                }
                set_times(&db.path(*kind), change).map_err(|error| errno::of_io(&error))?;
            }
            What::File(..) => {
                let file = node.opens().file.clone().ok_or(Errno::ENOENT)?;
                if let Some(size) = change.size {
                    file.set_len(size).map_err(|error| errno::of_io(&error))?;
                }
            }
            What::SuperJournal(backing) => {
                if let Some(size) = change.size {
                    let resized =
                        File::options().write(true).open(backing).and_then(|file| file.set_len(size));
                    resized.map_err(|error| errno::of_io(&error))?;
                }
                set_path(backing, change).map_err(|error| errno::of_io(&error))?;
            }
            What::Dir => {
                let backing = if node.path.is_empty() {
                    self.under_path()
                } else {
                    self.store.dir_path(&node.path).ok_or(Errno::ENOENT)?
                };
                set_path(&backing, change).map_err(|error| errno::of_io(&error))?;
            }
            What::Pos(_) | What::Primary | What::Lag if change.size.is_some() => {
                return Err(Errno::EACCES);
            }
            // A shell cuts what it opens for writing (`9> app.db-lock`).
            What::Pos(_) | What::Lock(_) | What::Primary | What::Lag => {}
        }
        self.attributes(node)
    }

    /// What the kernel may know of a new node: for READDIRPLUS.
    pub(super) fn known(&self, path: &str) -> Option<(Arc<Node>, FileAttr, Duration)> {
        match self.find(path) {
            Ok(Found::Entry(node, attr, trusted)) => Some((node, attr, trusted)),
            Ok(Found::Nothing(_)) | Err(_) => None,
        }
    }
}

/// Whose a new file shall be.
#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// Gives a new file the mode and owner that were asked for, whatever the daemon's umask
/// and user. Its metadata then.
fn settle(file: &File, path: &Path, mode: u32, owner: Owner) -> io::Result<Metadata> {
    let metadata = file.metadata()?;
    let (owned, permitted) =
        ((metadata.uid(), metadata.gid()) == (owner.uid, owner.gid), metadata.mode() & 0o7777 == mode);
    if !owned {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    if !permitted {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    }
    if owned && permitted { Ok(metadata) } else { file.metadata() }
}

fn may_change(caller: Caller, file: &Metadata, by_handle: bool, change: Change) -> Result<(), Errno> {
    let permitted = |allowed: bool, otherwise| if allowed { Ok(()) } else { Err(otherwise) };
    if change.size.is_some() && !by_handle {
        permitted(caller.may(WRITE, file), Errno::EACCES)?;
    }
    if change.mode.is_some() {
        permitted(caller.owns(file), Errno::EPERM)?;
    }
    if let Some(uid) = change.uid {
        permitted(uid == file.uid() && caller.owns(file), Errno::EPERM)?;
    }
    if let Some(gid) = change.gid {
        permitted(caller.owns(file) && (gid == file.gid() || caller.in_group(gid)), Errno::EPERM)?;
    }
    let given = |time: Option<TimeOrNow>| matches!(time, Some(TimeOrNow::SpecificTime(_)));
    // A truncate by handle comes with times that the kernel made.
    if change.size.is_none() && (change.atime.is_some() || change.mtime.is_some()) {
        let now = !given(change.atime) && !given(change.mtime);
        permitted(caller.owns(file) || (now && caller.may(WRITE, file)), Errno::EPERM)?;
    }
    Ok(())
}

fn set_path(path: &Path, change: Change) -> io::Result<()> {
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::empty())?;
    }
    if let Some(mode) = change.mode {
        rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))?;
    }
    set_times(path, change)
}

fn set_times(path: &Path, change: Change) -> io::Result<()> {
    if change.atime.is_none() && change.mtime.is_none() {
        return Ok(());
    }
    let times = Timestamps { last_access: timespec(change.atime), last_modification: timespec(change.mtime) };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => specific(time),
    }
}

fn specific(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        },
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timespec { tv_sec: -seconds, tv_nsec: 0 },
                nanos => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - i64::from(nanos) },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_count_nanoseconds_forwards() {
        let time = specific(UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!((time.tv_sec, time.tv_nsec), (-2, 500_000_000));
    }

    #[test]
    fn only_the_owner_changes_the_mode_and_nobody_gives_files_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let metadata = std::fs::metadata(dir.path()).expect("stat");
        let none = Change { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None };
        let owner = Caller { uid: metadata.uid(), gid: metadata.gid(), pid: u32::MAX };
        let stranger = Caller { uid: 4_000_001, gid: 4_000_001, pid: u32::MAX };
        let chmod = Change { mode: Some(0o600), ..none };
        assert!(may_change(owner, &metadata, false, chmod).is_ok());
        assert_eq!(may_change(stranger, &metadata, false, chmod), Err(Errno::EPERM));
        let chown = Change { uid: Some(1), ..none };
        assert_eq!(may_change(stranger, &metadata, false, chown), Err(Errno::EPERM));
        let truncate = Change { size: Some(0), ..none };
        assert_eq!(may_change(stranger, &metadata, false, truncate), Err(Errno::EACCES));
        assert!(may_change(stranger, &metadata, true, truncate).is_ok());
    }
}
