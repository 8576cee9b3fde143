//! The daemon as one more client of its own mount: it looks at locks, and without
//! passthrough at the wal-index, through descriptors of the mount.
//!
//! What may block in the mount happens on one thread with a descriptor table of its own,
//! made before /dev/fuse is opened. A thread that waits in the mount cannot be killed;
//! if it shared the table with /dev/fuse, a daemon killed with -9 would keep the
//! connection open, and that thread would wait for ever. What cannot block (asking for
//! a lock, which stays in the kernel) other threads do on descriptors that the thread
//! passes to them. They must be closed before unmounting: they keep the mount busy.
//!
//! A `-shm` file is opened here as soon as an application has it open, not when it is
//! needed: whoever needs it may hold what the answer to an UNLINK waits for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::inodes::{Inodes, Node};
use super::notify::{self, Note};
use super::own_files::{self, Doer};
use crate::db::{FileKind, OwnFile, OwnMount, WAL_INDEX_HEADER, WalIndex};
use crate::words::DbName;

/// SQLite's WAL_WRITE_LOCK: byte 120 of the `-shm` file.
const WAL_WRITE_LOCK: i64 = 120;

/// How long a read of the wal-index through the mount may take. It needs no request as
/// long as the kernel has the page, and it has while an application maps it.
const PATIENCE: Duration = Duration::from_secs(2);

/// A file that the kernel does not know yet is tried again so often, so many times.
const RETRY: Duration = Duration::from_millis(1);
const TRIES: u32 = 1000;

type Header = Box<[u8; WAL_INDEX_HEADER]>;

enum Order {
    Open { ino: u64, path: PathBuf },
    Close { ino: u64 },
    Read { ino: u64, path: PathBuf, answer: Sender<io::Result<Header>> },
    Do(own_files::Job),
    Stop,
}

/// An own descriptor of a `-shm` file.
enum Slot {
    /// Being opened.
    Waiting,
    /// Open.
    Ready(OwnedFd),
    /// Not to be opened.
    Failed(i32),
}

/// The daemon's side of its own mount.
pub(super) struct Own {
    thread_id: u32,
    orders: Sender<Order>,
    inbox: OwnedFd,
    slots: Mutex<HashMap<u64, Slot>>,
    inodes: Arc<Inodes>,
    notes: Sender<Note>,
    dir: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
    next_file: AtomicU64,
    /// Settled before the first open.
    pub passthrough: AtomicBool,
}

impl Own {
    /// Starts the thread. /dev/fuse must not be open yet.
    pub(super) fn start(dir: &Path, inodes: Arc<Inodes>, notes: Sender<Note>) -> io::Result<Own> {
        let (inbox, outbox) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (orders, todo) = crossbeam_channel::unbounded();
        let (started, start) = crossbeam_channel::bounded(1);
        let number = outbox.as_raw_fd();
        let thread = std::thread::Builder::new().name("litefs-own".to_owned()).spawn(move || {
            let separated = separate(outbox.as_fd());
            let go_on = separated.is_ok();
            let _ = started.send(separated.map(|()| rustix::thread::gettid().as_raw_nonzero().get()));
            if go_on {
                work(&todo, outbox.as_fd());
            }
            // Where the table was not separated the number belongs to the starter.
            if !go_on {
                std::mem::forget(outbox);
            }
        })?;
        let thread_id = start.recv().map_err(|_| io::Error::other("the thread ended at once"))?;
        // SAFETY: the thread has either left this table with its own copy of the
        // descriptor, or given up its claim; in this table nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        let thread_id = thread_id?;
        Ok(Own {
            thread_id: thread_id.unsigned_abs(),
            orders,
            inbox,
            slots: Mutex::default(),
            inodes,
            notes,
            dir: dir.to_owned(),
            thread: Mutex::new(Some(thread)),
            next_file: AtomicU64::new(0),
            passthrough: AtomicBool::new(false),
        })
    }

    /// Whether a request comes from the daemon: the kernel gives the thread's id.
    pub(super) fn is(&self, pid: u32) -> bool {
        pid == self.thread_id
    }

    /// The first application opened this `-shm` file.
    pub(super) fn appeared(&self, node: &Node) {
        self.slots.lock().insert(node.ino, Slot::Waiting);
        self.order(Order::Open { ino: node.ino, path: self.dir.join(&node.path) });
    }

    /// The last application closed it, or it was unlinked.
    pub(super) fn vanished(&self, ino: u64) {
        self.receive();
        if self.slots.lock().remove(&ino).is_some() {
            self.order(Order::Close { ino });
        }
    }

    /// What gives the thread something to do.
    fn doer(&self) -> Doer {
        let orders = self.orders.clone();
        Arc::new(move |job| orders.send(Order::Do(job)).is_ok())
    }

    /// Where a file of the mount is.
    fn path(&self, db: &DbName, kind: FileKind) -> PathBuf {
        self.dir.join(format!("{db}{}", kind.suffix()))
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::debug!("the own mount has been closed");
        }
    }

    /// Where descriptors arrive.
    pub(super) fn inbox(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }

    /// Takes the descriptors that have arrived. False when no more will come.
    pub(super) fn receive(&self) -> bool {
        // Taken before a message, so that a message and its place in the table are one.
        let mut slots = self.slots.lock();
        loop {
            match receive(self.inbox.as_fd()) {
                Ok(Some((ino, result))) => {
                    if let Some(slot) = slots.get_mut(&ino) {
                        *slot = match result {
                            Ok(descriptor) => Slot::Ready(descriptor),
                            Err(errno) => Slot::Failed(errno),
                        };
                    }
                }
                Ok(None) => return false,
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("cannot receive a descriptor of the own mount: {error}");
                    return true;
                }
            }
        }
    }

    /// Closes everything in the mount and ends the thread, if it answers in time.
    pub(super) fn stop(&self) {
        self.receive();
        self.slots.lock().clear();
        self.order(Order::Stop);
        let thread = self.thread.lock().take();
        let Some(thread) = thread else { return };
        let (joined, wait) = crossbeam_channel::bounded(1);
        let joiner = std::thread::Builder::new().name("litefs-join".to_owned()).spawn(move || {
            let _ = joined.send(thread.join());
        });
        if joiner.is_ok() && wait.recv_timeout(PATIENCE).is_err() {
            tracing::warn!("the own mount's thread still waits in the mount; unmounting will free it");
        }
        self.receive();
        self.slots.lock().clear();
    }

    /// The `-shm` file of a database, if an application has it open.
    fn shm(&self, db: &DbName) -> Option<Arc<Node>> {
        let node = self.inodes.at(&format!("{db}{}", FileKind::Shm.suffix()))?;
        let used = !node.gone() && node.opens().apps > 0;
        used.then_some(node)
    }

    fn read_through_mount(&self, ino: u64, path: PathBuf) -> io::Result<Header> {
        let (answer, header) = crossbeam_channel::bounded(1);
        self.order(Order::Read { ino, path, answer });
        header.recv_timeout(PATIENCE).map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, "the own mount does not answer a read of the wal-index")
        })?
    }
}

impl OwnMount for Own {
    fn passes_wal(&self) -> bool {
        self.passthrough.load(Ordering::Acquire)
    }

    fn wal_index(&self, db: &DbName) -> io::Result<WalIndex> {
        let Some(node) = self.shm(db) else { return Ok(WalIndex::Unused) };
        if !self.passthrough.load(Ordering::Acquire) {
            return self.read_through_mount(node.ino, self.dir.join(&node.path)).map(WalIndex::Used);
        }
        let Some(file) = node.opens().file.clone() else { return Ok(WalIndex::Unused) };
        read_header(&file).map(WalIndex::Used)
    }

    fn wal_index_at_once(&self, db: &DbName) -> Option<WalIndex> {
        if !self.passthrough.load(Ordering::Acquire) {
            return None;
        }
        self.wal_index(db).ok()
    }

    fn wal_write_locked(&self, db: &DbName) -> io::Result<bool> {
        let Some(node) = self.shm(db) else { return Ok(false) };
        if matches!(self.slots.lock().get(&node.ino), Some(Slot::Waiting)) {
            self.receive();
        }
        match self.slots.lock().get(&node.ino) {
            Some(Slot::Ready(descriptor)) => write_locked(descriptor.as_fd()),
            // Not known yet: the caller looks again soon.
            Some(Slot::Waiting) => Ok(true),
            Some(Slot::Failed(errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(false),
        }
    }

    fn changed(&self, db: &DbName, offset: u64, len: u64) {
        notify::post(&self.notes, Note::Database { db: db.clone(), offset, len });
    }

    fn open(&self, db: &DbName, kind: FileKind, create: bool) -> io::Result<Box<dyn OwnFile>> {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        own_files::open(&self.doer(), number, self.path(db, kind), create)
    }

    fn unlink(&self, db: &DbName, kind: FileKind) -> io::Result<()> {
        own_files::unlink(&self.doer(), self.path(db, kind))
    }

    fn settle(&self) -> io::Result<()> {
        let (reached, wait) = crossbeam_channel::bounded(1);
        notify::post(&self.notes, Note::Reached(reached));
        wait.recv_timeout(own_files::PATIENCE)
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the kernel does not take notifications"))
    }

    fn grown(&self, db: &DbName, len: u64) -> io::Result<()> {
        own_files::grown(&self.doer(), self.path(db, FileKind::Database), len)
    }
}

/// Gives the calling thread a descriptor table in which only `keep` and the standard
/// streams are open.
fn separate(keep: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this thread, which has just begun, uses no descriptor but `keep`, and that
    // keeps its number in the new table.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?;
    let keep = keep.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, keep - 1), (keep + 1, u32::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: the table is this thread's alone, and it owns none of these numbers in
        // it: they are copies of what other threads own in theirs.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The thread: everything here may block in the mount.
fn work(todo: &Receiver<Order>, outbox: BorrowedFd<'_>) {
    let mut client = Client { outbox, open: HashMap::new(), wanted: HashMap::new(), files: HashMap::new() };
    loop {
        let order = if client.wanted.is_empty() {
            todo.recv().map_err(RecvTimeoutError::from)
        } else {
            todo.recv_timeout(RETRY)
        };
        let heard = match order {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(order) => client.obey(order),
            Err(RecvTimeoutError::Timeout) => client.retry(),
        };
        if heard.is_err() {
            return;
        }
    }
}

/// A file that is to be opened.
struct Wanted {
    path: PathBuf,
    tries: u32,
}

struct Client<'a> {
    outbox: BorrowedFd<'a>,
    open: HashMap<u64, File>,
    wanted: HashMap<u64, Wanted>,
    files: HashMap<u64, File>,
}

impl Client<'_> {
    /// Fails when nobody listens any more.
    fn obey(&mut self, order: Order) -> rustix::io::Result<()> {
        match order {
            Order::Open { ino, path } => {
                self.wanted.insert(ino, Wanted { path, tries: 0 });
                self.try_open(ino)
            }
            Order::Close { ino } => {
                self.wanted.remove(&ino);
                self.open.remove(&ino);
                Ok(())
            }
            Order::Read { ino, path, answer } => {
                self.try_open(ino)?;
                // Who no longer waits has given up.
                let _ = answer.send(self.read(ino, &path));
                Ok(())
            }
            Order::Do(job) => {
                job(&mut self.files);
                Ok(())
            }
            Order::Stop => Ok(()),
        }
    }

    /// The wal-index's first bytes. Those of one that is not there are zeros, as while
    /// SQLite makes it: they say nothing, not that there is no wal-index.
    fn read(&self, ino: u64, path: &Path) -> io::Result<Header> {
        if let Some(file) = self.open.get(&ino) {
            return read_header(file);
        }
        match open_in_mount(ino, path) {
            Ok(file) => read_header(&file),
            // The kernel has not had the answer to the CREATE, or it went meanwhile.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::STALE) => Ok(Box::new([0; WAL_INDEX_HEADER])),
            Err(error) => Err(error.into()),
        }
    }

    fn retry(&mut self) -> rustix::io::Result<()> {
        let wanted: Vec<u64> = self.wanted.keys().copied().collect();
        wanted.into_iter().try_for_each(|ino| self.try_open(ino))
    }

    /// Opens what is wanted and tells. The order may come before the kernel has had the
    /// answer to the CREATE: until then it remembers that there is no such file.
    fn try_open(&mut self, ino: u64) -> rustix::io::Result<()> {
        let Some(wanted) = self.wanted.get_mut(&ino) else { return Ok(()) };
        let opened = open_in_mount(ino, &wanted.path);
        if opened.as_ref().is_err_and(|error| *error == rustix::io::Errno::NOENT) && wanted.tries < TRIES {
            wanted.tries += 1;
            return Ok(());
        }
        self.wanted.remove(&ino);
        send(self.outbox, ino, opened.as_ref().map(AsFd::as_fd))?;
        if let Ok(file) = opened {
            self.open.insert(ino, file);
        }
        Ok(())
    }
}

fn open_in_mount(ino: u64, path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&file, c"", flags, StatxFlags::INO)?;
    // Unlinked and made anew meanwhile: the new one is opened on its own account.
    if found.stx_ino == ino { Ok(file) } else { Err(rustix::io::Errno::STALE) }
}

fn send(
    outbox: BorrowedFd<'_>,
    ino: u64,
    opened: Result<BorrowedFd<'_>, &rustix::io::Errno>,
) -> rustix::io::Result<()> {
    let errno = opened.as_ref().err().map_or(0, |error| error.raw_os_error());
    let mut text = [0; 12];
    text[..8].copy_from_slice(&ino.to_ne_bytes());
    text[8..].copy_from_slice(&errno.to_ne_bytes());
    let descriptors = opened.map(|descriptor| [descriptor]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Ok(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::net::sendmsg(outbox, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

type Message = (u64, Result<OwnedFd, i32>);

/// The next message; `None` when the other side is closed.
fn receive(inbox: BorrowedFd<'_>) -> rustix::io::Result<Option<Message>> {
    let mut text = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(inbox, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags)?;
    if received.bytes != text.len() {
        return Ok(None);
    }
    let [ino @ .., e0, e1, e2, e3] = text;
    let (ino, errno) = (u64::from_ne_bytes(ino), i32::from_ne_bytes([e0, e1, e2, e3]));
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    // A message that lost its descriptor found this table full.
    Ok(Some((ino, descriptor.ok_or(if errno == 0 { libc::EMFILE } else { errno }))))
}

/// The wal-index's first bytes; zeros where the file is shorter, as while SQLite makes
/// it, so that it reads as not initialised.
fn read_header(file: &File) -> io::Result<Header> {
    let mut header = Box::new([0; WAL_INDEX_HEADER]);
    let mut done = 0;
    while done < header.len() {
        match file.read_at(&mut header[done..], done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(header)
}

/// Whether anybody holds the WAL's write lock.
fn write_locked(shm: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: `flock` is a plain C struct for which zeros are a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = WAL_WRITE_LOCK;
    lock.l_len = 1;
    // SAFETY: the call reads and writes `lock`, which lives until it returns.
    let asked = unsafe { libc::fcntl(shm.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_opened_on_the_own_table_arrives_and_shows_locks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a-shm");
        std::fs::write(&path, [7; 200]).expect("write");
        let (notes, _kept) = crossbeam_channel::unbounded();
        let own = Own::start(dir.path(), Arc::new(Inodes::new()), notes).expect("start");
        let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("stat"));
        own.slots.lock().insert(ino, Slot::Waiting);
        own.order(Order::Open { ino, path: path.clone() });
        // Orders are done one by one: this answer comes after the descriptor was sent.
        let header = own.read_through_mount(ino, path.clone()).expect("read");
        assert_eq!(header[..], [7; WAL_INDEX_HEADER]);
        assert!(own.receive());
        let slots = own.slots.lock();
        let Some(Slot::Ready(descriptor)) = slots.get(&ino) else { panic!("no descriptor") };
        assert!(!write_locked(descriptor.as_fd()).expect("ask"));
        drop(slots);
        own.stop();
    }

    #[test]
    fn a_wal_index_that_went_says_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a-shm");
        std::fs::write(&path, [7; 200]).expect("write");
        let (notes, _kept) = crossbeam_channel::unbounded();
        let own = Own::start(dir.path(), Arc::new(Inodes::new()), notes).expect("start");
        let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("stat"));
        assert_eq!(own.read_through_mount(ino, path.clone()).expect("read")[..], [7; WAL_INDEX_HEADER]);
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(own.read_through_mount(ino, path).expect("read")[..], [0; WAL_INDEX_HEADER]);
        own.stop();
    }

    #[test]
    fn a_file_that_was_replaced_is_not_taken_for_the_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a-shm");
        std::fs::write(&path, b"").expect("write");
        assert_eq!(open_in_mount(u64::MAX, &path).err(), Some(rustix::io::Errno::STALE));
    }
}
