//! Sees the commits that pass the daemon by: writes to a WAL, and to a journal that is
//! kept, which the kernel carries to the backing file itself. One thread for all
//! databases. An event says only "look": events merge and come before the commit is
//! published, so after one the thread looks until the database is settled, backing off
//! from 50 µs to 5 ms; without events it sleeps. After a look it lets events gather for
//! a while, longer as long as they keep coming: under a steady load one look then
//! captures many commits, and the writers are not interrupted at each.

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

/// How long events gather after a look, at first and under a steady load.
const GATHER: Duration = Duration::from_millis(1);
const GATHER_LONG: Duration = Duration::from_millis(4);

/// A file that is looked at again so soon is under a steady load.
const STEADY: Duration = Duration::from_millis(10);

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
    /// When it was looked at last.
    looked: Option<Instant>,
    /// Its events keep coming.
    steady: bool,
    /// The last failure, so that it is logged once.
    failure: Option<String>,
}

#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    pause: Duration,
}

/// What there is to do.
struct Woken {
    orders: bool,
    events: bool,
    own: bool,
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
            let woken = self.wait();
            if woken.events {
                self.read_events();
            }
            if woken.orders && !self.read_orders() {
                return;
            }
            if woken.own {
                self.own_closed = !self.own.receive();
            }
            self.take_young();
            self.look();
        }
    }

    /// Sleeps until there is something to do; without a timeout where nothing is due.
    fn wait(&mut self) -> Woken {
        let due = self.files.values().filter_map(|file| file.due.map(|due| due.at));
        let due = due.chain(self.young_at).chain(self.gather_until).min();
        let timeout = due.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
        });
        // What is not asked for is not waited for; errors and ends come all the same.
        let asked = |yes| if yes { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(&self.watch.wake, PollFlags::IN),
            PollFd::new(&self.events, asked(self.gather_until.is_none())),
            PollFd::from_borrowed_fd(self.own.inbox(), PollFlags::IN),
        ];
        let used = if self.own_closed { 2 } else { 3 };
        let ready = rustix::event::poll(&mut fds[..used], timeout.as_ref());
        if let Err(error) = ready
            && error != rustix::io::Errno::INTR
        {
            tracing::error!("cannot wait for events of WAL files: {error}");
        }
        let [orders, events, own] = fds.map(|fd| ready.is_ok() && !fd.revents().is_empty());
        // What gathered is due now.
        let gathered = self.gather_until.take_if(|until| *until <= Instant::now()).is_some();
        Woken { orders, events: events || gathered, own: own && !self.own_closed }
    }

    fn read_events(&mut self) {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.events.as_fd(), &mut space);
        let at = Instant::now();
        let now = Some(Due { at, pause: SOON });
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
                    // One that is due already is at work for long.
                    if let Some(file) = file.filter(|file| file.due.is_none()) {
                        file.due = now;
                        file.steady = file.looked.is_some_and(|looked| at.duration_since(looked) < STEADY);
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
        self.files.insert(ino, Watched { db, number, file, due, looked: None, steady: false, failure: None });
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
            file.looked = Some(now);
            let gather = if file.steady { GATHER_LONG } else { GATHER };
            self.gather_until = self.gather_until.max(Some(now + gather));
            file.due = match file.look() {
                Captured::Settled => None,
                Captured::Again => {
                    // Under a steady load a writer is at work most of the time: what it is
                    // about to publish is seen with what comes after.
                    let pause = if file.steady { due.pause.max(GATHER_LONG) } else { due.pause };
                    Some(Due { at: Instant::now() + pause, pause: (due.pause * 2).min(LATE) })
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
