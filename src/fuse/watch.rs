//! Sees the commits that pass the daemon by: writes to a WAL, and to a journal that is
//! kept, which the kernel carries to the backing file itself. One thread for all
//! databases. An event says only "look": events merge and come before the commit is
//! published, so after one the thread looks until the database is settled, backing off
//! from 50 µs to 5 ms; without events it sleeps. After a look it lets events gather for
//! a millisecond: under a steady load one look then captures many commits, and the
//! writer is not interrupted at each.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::inotify;

use super::own::Own;
use crate::db::{Captured, Database, FileKind};

const SOON: Duration = Duration::from_micros(50);
const LATE: Duration = Duration::from_millis(5);

/// How long events gather after a look.
const GATHER: Duration = Duration::from_millis(1);

/// How old a journal must be to be watched. In DELETE mode it is gone by then, and its
/// end is an unlink that the daemon sees anyway.
const LASTING: Duration = Duration::from_millis(10);

enum Order {
    Wal { ino: u64, db: Arc<Database> },
    Look { ino: u64 },
    Drop { ino: u64 },
    Stop,
}

#[derive(Default)]
struct Inbox {
    orders: Vec<Order>,
    young: HashMap<u64, Arc<Database>>,
    /// Whether the thread knows that there are young journals.
    told: bool,
}

/// The thread's other side.
pub(super) struct Watch {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watch {
    /// Starts the thread; it also takes in the descriptors that `own` is sent.
    pub(super) fn start(own: Arc<Own>) -> io::Result<Arc<Watch>> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watch = Arc::new(Watch { inbox: Mutex::default(), wake, thread: Mutex::new(None) });
        let worker = Worker {
            watch: watch.clone(),
            own,
            events,
            files: HashMap::new(),
            by_number: HashMap::new(),
            young_at: None,
            gather_until: None,
            own_closed: false,
        };
        let thread = std::thread::Builder::new().name("litefs-watch".to_owned());
        let thread = thread.spawn(move || worker.run())?;
        *watch.thread.lock() = Some(thread);
        Ok(watch)
    }

    /// An application opened a WAL.
    pub(super) fn wal(&self, ino: u64, db: &Arc<Database>) {
        self.inbox.lock().orders.push(Order::Wal { ino, db: db.clone() });
        self.wake();
    }

    /// Something about a WAL can have changed without an event.
    pub(super) fn look(&self, ino: u64) {
        self.inbox.lock().orders.push(Order::Look { ino });
        self.wake();
    }

    /// An application opened or made a journal.
    pub(super) fn journal(&self, ino: u64, db: &Arc<Database>) {
        let mut inbox = self.inbox.lock();
        inbox.young.insert(ino, db.clone());
        if !std::mem::replace(&mut inbox.told, true) {
            self.wake();
        }
    }

    /// The last application closed a WAL or journal.
    pub(super) fn closed(&self, ino: u64) {
        let mut inbox = self.inbox.lock();
        if inbox.young.remove(&ino).is_none() {
            inbox.orders.push(Order::Drop { ino });
            self.wake();
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.inbox.lock().orders.push(Order::Stop);
        self.wake();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the watch of the WAL files panicked: this is a bug in litefs");
        }
    }

    fn wake(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// A file that is watched.
struct Watched {
    db: Arc<Database>,
    number: i32,
    /// The backing file, of a journal.
    file: Option<File>,
    /// When to look again, and how long the next pause is.
    due: Option<Due>,
    /// The last failure, so that it is logged once.
    failure: Option<String>,
}

#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    pause: Duration,
}

struct Worker {
    watch: Arc<Watch>,
    own: Arc<Own>,
    events: OwnedFd,
    files: HashMap<u64, Watched>,
    by_number: HashMap<i32, u64>,
    young_at: Option<Instant>,
    /// Until then events are left to gather.
    gather_until: Option<Instant>,
    own_closed: bool,
}

impl Worker {
    fn run(mut self) {
        loop {
            self.wait();
            if self.gather_until.is_none() {
                self.read_events();
            }
            if !self.read_orders() {
                return;
            }
            if !self.own_closed {
                self.own_closed = !self.own.receive();
            }
            self.take_young();
            self.look();
        }
    }

    /// Sleeps until there is something to do; without a timeout where nothing is due.
    fn wait(&mut self) {
        let due = self.files.values().filter_map(|file| file.due.map(|due| due.at));
        let due = due.chain(self.young_at).chain(self.gather_until).min();
        let timeout = due.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut fds = vec![PollFd::new(&self.watch.wake, PollFlags::IN)];
        if self.gather_until.is_none() {
            fds.push(PollFd::new(&self.events, PollFlags::IN));
        }
        if !self.own_closed {
            fds.push(PollFd::from_borrowed_fd(self.own.inbox(), PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => tracing::error!("cannot wait for events of WAL files: {error}"),
        }
        if self.gather_until.is_some_and(|until| until <= Instant::now()) {
            self.gather_until = None;
        }
    }

    fn read_events(&mut self) {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.events.as_fd(), &mut space);
        let now = Some(Due { at: Instant::now(), pause: SOON });
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    // Events were lost: look at everything.
                    for file in self.files.values_mut() {
                        file.due = now;
                    }
                }
                Ok(event) => {
                    let file = self.by_number.get(&event.wd()).and_then(|ino| self.files.get_mut(ino));
                    if let Some(file) = file {
                        // One that is due already is at work for long.
                        file.due = file.due.or(now);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Does what was ordered; false at the end.
    fn read_orders(&mut self) -> bool {
        let mut counter = [0; 8];
        if rustix::io::read(&self.watch.wake, &mut counter).is_err() {
            return true;
        }
        let (orders, young) = {
            let mut inbox = self.watch.inbox.lock();
            (std::mem::take(&mut inbox.orders), inbox.told)
        };
        if young && self.young_at.is_none() {
            self.young_at = Some(Instant::now() + LASTING);
        }
        for order in orders {
            match order {
                Order::Wal { ino, db } => self.add(ino, db, FileKind::Wal),
                Order::Look { ino } => {
                    if let Some(file) = self.files.get_mut(&ino) {
                        file.due = file.due.or(Some(Due { at: Instant::now(), pause: SOON }));
                    }
                }
                Order::Drop { ino } => self.remove(ino),
                Order::Stop => return false,
            }
        }
        true
    }

    /// Journals that have lasted get a watch.
    fn take_young(&mut self) {
        if self.young_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.young_at = None;
        let young = {
            let mut inbox = self.watch.inbox.lock();
            inbox.told = false;
            std::mem::take(&mut inbox.young)
        };
        for (ino, db) in young {
            self.add(ino, db, FileKind::Journal);
        }
    }

    fn add(&mut self, ino: u64, db: Arc<Database>, kind: FileKind) {
        let path = db.path(kind);
        let number = match inotify::add_watch(&self.events, &path, inotify::WatchFlags::MODIFY) {
            Ok(number) => number,
            // It went meanwhile, and its end was seen.
            Err(rustix::io::Errno::NOENT) => return,
            Err(error) => {
                tracing::error!(
                    db = %db.name(),
                    "cannot watch {}: {error}; its commits are captured at checkpoints and when it is \
                     closed only (raise fs.inotify.max_user_watches)",
                    path.display()
                );
                return;
            }
        };
        let file = if kind == FileKind::Journal { File::open(&path).ok() } else { None };
        if let Some(old) = self.files.remove(&ino) {
            self.by_number.remove(&old.number);
        }
        self.by_number.insert(number, ino);
        let due = Some(Due { at: Instant::now(), pause: SOON });
        self.files.insert(ino, Watched { db, number, file, due, failure: None });
    }

    /// Looks a last time at a file that nobody has open any more.
    fn remove(&mut self, ino: u64) {
        let Some(mut file) = self.files.remove(&ino) else { return };
        if self.by_number.get(&file.number) == Some(&ino) {
            self.by_number.remove(&file.number);
            // Fails where the file is gone, and the watch with it.
            let _ = inotify::remove_watch(&self.events, file.number);
        }
        file.look();
    }

    fn look(&mut self) {
        let now = Instant::now();
        for file in self.files.values_mut() {
            let Some(due) = file.due.filter(|due| due.at <= now) else { continue };
            self.gather_until = Some(now + GATHER);
            file.due = match file.look() {
                Captured::Settled => None,
                Captured::Again => {
                    Some(Due { at: Instant::now() + due.pause, pause: (due.pause * 2).min(LATE) })
                }
            };
        }
    }
}

impl Watched {
    fn look(&mut self) -> Captured {
        if self.file.as_ref().is_some_and(|journal| !ended(journal)) {
            return Captured::Settled;
        }
        match self.db.capture() {
            Ok(captured) => {
                self.failure = None;
                captured
            }
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::error!(db = %self.db.name(), "cannot capture: {text}");
                }
                self.failure = Some(text);
                Captured::Settled
            }
        }
    }
}

/// Whether a journal's header says that the transaction has ended: PERSIST zeroes it,
/// TRUNCATE leaves none.
fn ended(journal: &File) -> bool {
    let mut header = [0; 8];
    match journal.read_at(&mut header, 0) {
        Ok(count) => count < header.len() || header == [0; 8],
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_has_ended_when_it_is_short_or_zeroed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        for (content, expected) in
            [(&b""[..], true), (&[0; 28], true), (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7x", false)]
        {
            std::fs::write(&path, content).expect("write");
            assert_eq!(ended(&File::open(&path).expect("open")), expected);
        }
    }
}
