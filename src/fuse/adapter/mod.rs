//! The kernel's requests: each is decoded, handed to the tree, and answered. Nothing is
//! decided here but on which thread: what may take long goes to the pool, and its reply
//! with it.

mod threads;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{self, LONG};
use super::committing::commit;
use super::counters::{Counters, Op};
use super::creating::{Change, New};
use super::inodes::What;
use super::names;
use super::permissions::Caller;
use super::placement::{follow, raise_priority};
use super::pool::Pool;
use super::tree::{Found, Tree};
use crate::db::Database;

use threads::answer;

const GENERATION: Generation = Generation(0);

/// The largest write in one request.
const MAX_WRITE: u32 = 1024 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the kernel talks to.
pub(super) struct Adapter {
    tree: Arc<Tree>,
    pool: Pool,
    counters: Arc<Counters>,
    passthrough: bool,
    /// The last fsync took long.
    slow: Arc<AtomicBool>,
}

impl Adapter {
    pub(super) fn new(tree: Arc<Tree>, pool: Pool, counters: Arc<Counters>, passthrough: bool) -> Adapter {
        Adapter { tree, pool, counters, passthrough, slow: Arc::default() }
    }

    /// Counts a request; the daemon's own are not counted.
    fn enter(&self, op: Op, request: &Request) -> Caller {
        raise_priority();
        if !self.tree.own.is(request.pid()) {
            self.counters.add(op);
            // The kernel's own requests have no process.
            if request.pid() != 0 {
                follow(request.pid());
            }
        }
        Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Not asked for: POSIX_LOCKS and FLOCK_LOCKS (locks stay in the kernel),
        // WRITEBACK_CACHE (writes would not be seen), AUTO_INVAL_DATA (a write and an
        // fstat would drop the page cache), ATOMIC_O_TRUNC (a truncate is a SETATTR).
        let wanted = [
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            // Else the kernel asks for the mode again before each chown, which SQLite
            // run by root does to each journal. The mount is nosuid: such bits on a
            // database mean nothing in it.
            InitFlags::FUSE_HANDLE_KILLPRIV,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel lacks {flag:?}");
            }
        }
        if self.passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            // 2, the kernel's limit, lets the data directory be on overlayfs.
            let _ = config.set_max_stack_depth(2);
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let caller = self.enter(Op::Lookup, request);
        match self.tree.lookup(caller, parent.0, name) {
            Ok(Found::Entry(_, attr, trusted)) => reply.entry(&trusted, &attr, GENERATION),
            // Inode 0: no such name, and for how long.
            Ok(Found::Nothing(trusted)) => reply.entry(&trusted, &attributes::nothing(), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.tree.inodes.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.enter(Op::Getattr, request);
        match self.tree.node(ino.0).and_then(|node| self.tree.attributes(&node)) {
            Ok((attr, trusted)) => reply.attr(&trusted, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = self.enter(Op::Setattr, request);
        let change = Change { mode, uid, gid, size, atime, mtime };
        let tree = self.tree.clone();
        let job = move |go: Result<(), Errno>| {
            let changed = go
                .and_then(|()| tree.node(ino.0))
                .and_then(|node| tree.set_attributes(caller, &node, fh.is_some(), change));
            match changed {
                Ok((attr, trusted)) => reply.attr(&trusted, &attr),
                Err(errno) => reply.error(errno),
            }
        };
        match self.tree.cuts_journal(ino.0, size) {
            Some(db) => self.committing(db, Database::submit_at_end, job),
            None if size.is_some() => self.pool.run(move || job(Ok(()))),
            None => job(Ok(())),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.enter(Op::Mknod, request);
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = self.enter(Op::Mkdir, request);
        match self.tree.mkdir(caller, parent.0, name, mode) {
            Ok((attr, trusted)) => reply.entry(&trusted, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = self.enter(Op::Unlink, request);
        if let Some(db) = self.tree.unlinks_journal(parent.0, name) {
            let (tree, name) = (self.tree.clone(), name.to_owned());
            return self.committing(db, Database::submit_at_end, move |go| {
                answer(reply, go.and_then(|()| tree.unlink(caller, parent.0, &name)));
            });
        }
        if self.tree.unlink_is_quick(parent.0, name) {
            return answer(reply, self.tree.unlink(caller, parent.0, name));
        }
        let name = name.to_owned();
        self.later(reply, move |tree| tree.unlink(caller, parent.0, &name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = self.enter(Op::Rmdir, request);
        answer(reply, self.tree.rmdir(caller, parent.0, name));
    }

    fn symlink(&self, request: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        self.enter(Op::Symlink, request);
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.enter(Op::Rename, request);
        // mv(1) then copies.
        reply.error(Errno::EXDEV);
    }

    fn link(&self, request: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        self.enter(Op::Link, request);
        reply.error(Errno::EPERM);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = self.enter(Op::Open, request);
        if self.tree.opens_lock(ino.0, flags.0) {
            let tree = self.tree.clone();
            return self.pool.run(move || match tree.open_lock(caller, ino.0) {
                Ok(opened) => reply.opened(FileHandle(opened.fh), opened.flags),
                Err(errno) => reply.error(errno),
            });
        }
        match self.tree.open(caller, ino.0, flags.0, &|file| reply.open_backing(file)) {
            Ok(opened) => match opened.backing {
                Some(id) => reply.opened_passthrough(FileHandle(opened.fh), opened.flags, &id),
                None => reply.opened(FileHandle(opened.fh), opened.flags),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = self.enter(Op::Create, request);
        // The kernel has applied the umask: DONT_MASK was not asked for.
        let new = New { mode, flags };
        match self.tree.create(caller, parent.0, name, new, &|file| reply.open_backing(file)) {
            Ok(created) => {
                let fh = FileHandle(created.opened.fh);
                let (flags, attr) = (created.opened.flags, &created.attr);
                match created.opened.backing {
                    Some(id) => reply.created_passthrough(&LONG, attr, GENERATION, fh, flags, &id),
                    None => reply.created(&LONG, attr, GENERATION, fh, flags),
                }
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.enter(Op::Read, request);
        let handle = match self.tree.handle(fh.0) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        let slow = matches!(handle.node.what, What::Pos(_));
        let tree = self.tree.clone();
        let job = move || {
            BUFFER.with_borrow_mut(|buffer| {
                buffer.clear();
                buffer.resize(size as usize, 0);
                match tree.read(&handle, offset, buffer) {
                    Ok(()) => reply.data(buffer),
                    Err(errno) => reply.error(errno),
                }
            });
        };
        if slow { self.pool.run(job) } else { job() }
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let caller = self.enter(Op::Write, request);
        let handle = match self.tree.handle(fh.0) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        let count = data.len() as u32;
        let answer = move |result| match result {
            Ok(()) => reply.written(count),
            Err(errno) => reply.error(errno),
        };
        if let Some(db) = self.tree.writes_journal(&handle, offset) {
            let (tree, data) = (self.tree.clone(), data.to_owned());
            let header = data.clone();
            let submit = move |db: &Database, done| db.submit_at_header(&header, done);
            return self.committing(db, submit, move |go| {
                answer(go.and_then(|()| tree.write(caller, &handle, offset, &data)));
            });
        }
        if let Some(db) = self.tree.writes_frames(&handle) {
            return self.write_frames((caller, handle, db), offset, data, answer);
        }
        if let Some(done) = self.tree.write_at_once(caller, &handle, offset, data) {
            return answer(done);
        }
        let (tree, data) = (self.tree.clone(), data.to_owned());
        self.pool.run(move || answer(tree.write(caller, &handle, offset, &data)));
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let caller = self.enter(Op::Flush, request);
        let handle = match self.tree.handle(fh.0) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        let Some(db) = self.tree.closes_journal(caller, &handle) else {
            return self.later(reply, move |tree| tree.flush(&handle));
        };
        let tree = self.tree.clone();
        self.committing(db, Database::submit_at_close, move |go| {
            answer(reply, go.and_then(|()| tree.flush(&handle)));
        });
    }

    fn release(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let Some(handle) = self.tree.handles.remove(fh.0) else { return reply.ok() };
        // The kernel releases on its own account: the handle says whose it was.
        if !handle.own {
            self.enter(Op::Release, request);
        }
        if self.tree.slow_release(&handle) {
            return self.later(reply, move |tree| {
                tree.release(&handle);
                Ok(())
            });
        }
        self.tree.release(&handle);
        reply.ok();
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let caller = self.enter(Op::Fsync, request);
        let handle = match self.tree.handle(fh.0) {
            Ok(handle) => handle,
            Err(errno) => return reply.error(errno),
        };
        let Some(db) = self.tree.syncs_commit(caller, &handle) else {
            return if self.tree.sync_asks_nobody(&handle) {
                self.at_once_or_later(reply, move |tree| tree.sync(&handle))
            } else {
                self.later(reply, move |tree| tree.sync(&handle))
            };
        };
        let (tree, pool) = (self.tree.clone(), self.pool.clone());
        self.pool.run(move || match tree.sync(&handle) {
            Ok(()) => commit(&pool, &db, Database::submit_at_sync, move |go| answer(reply, go)),
            Err(errno) => reply.error(errno),
        });
    }

    fn opendir(&self, request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.enter(Op::Opendir, request);
        // The kernel then never asks again, nor for RELEASEDIR.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let caller = self.enter(Op::Readdir, request);
        match self.tree.list(caller, ino.0, offset) {
            Ok((_, lines)) => {
                for line in lines {
                    if reply.add(INodeNo(line.ino), line.cookie, line.kind, &line.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let caller = self.enter(Op::Readdir, request);
        let (dir, lines) = match self.tree.list(caller, ino.0, offset) {
            Ok(listed) => listed,
            Err(errno) => return reply.error(errno),
        };
        for line in lines {
            if line.name == "." || line.name == ".." {
                // Of these the kernel takes the name alone.
                let mut attr = attributes::nothing();
                (attr.ino, attr.kind) = (INodeNo(line.ino), line.kind);
                if reply.add(attr.ino, line.cookie, &line.name, &attributes::NEVER, &attr, GENERATION) {
                    break;
                }
                continue;
            }
            // Gone since the names were listed.
            let Some((node, attr, trusted)) = self.tree.known(&names::join(&dir, &line.name)) else {
                continue;
            };
            if reply.add(INodeNo(node.ino), line.cookie, &line.name, &trusted, &attr, GENERATION) {
                self.tree.inodes.forget(node.ino, 1);
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.enter(Op::Fsyncdir, request);
        self.at_once_or_later(reply, move |tree| tree.sync_dir(ino.0));
    }

    fn statfs(&self, request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.enter(Op::Statfs, request);
        let Some(dir) = self.tree.store.dir_path("") else { return reply.error(Errno::EIO) };
        match rustix::fs::statvfs(dir) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                255,
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(Errno::from_i32(error.raw_os_error())),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.enter(Op::Xattr, request);
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        self.enter(Op::Xattr, request);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, request: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        self.enter(Op::Xattr, request);
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.enter(Op::Xattr, request);
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.enter(Op::Access, request);
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.enter(Op::Ioctl, request);
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.enter(Op::Fallocate, request);
        // ENOSYS: EOPNOTSUPP for the application, and the kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.enter(Op::Lseek, request);
        // ENOSYS: the kernel takes files for dense, as it does by default.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.enter(Op::CopyRange, request);
        // ENOSYS: the kernel copies by reading and writing.
        reply.error(Errno::ENOSYS);
    }
}
