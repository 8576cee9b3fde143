//! The replica's side of the halt lock: asks the primary for it, waits until everything is
//! here, lets applications write, and takes each commit to the primary before it counts.
//! One thread for each lock that is held; it says once a second that it is still needed.
//! Whatever goes wrong, the lock is lost, and a commit that was under way fails. Must not
//! decide that a commit counts without the primary's word.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::archive::Body;
use crate::db::{Committed, Database, DbError, Done, Forward, Verdict};
use crate::fuse::{HaltGuard, Halts};
use crate::lease::Member;
use crate::ltx::Codec;
use crate::node::encode::{EncodeError, Style, change_set};
use crate::peer::{Client, ClientError, HaltClaim, Halted, Timeouts};
use crate::store::Store;
use crate::words::{Clock, DbName, HaltId, NodeId};

/// How long an application waits for the lock: for another one of this node that has it,
/// and then for everything to be here. Less than a lock holds without renewal.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often the primary hears that the lock is still needed.
const RENEW: Duration = Duration::from_secs(1);

/// How long an application in a transaction is waited for, before it is said.
const WRITERS: Duration = Duration::from_secs(5);

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    reply: Duration::from_secs(4),
    // A commit waits for readers on the primary, perhaps for the archive.
    long: Duration::from_secs(120),
    stall: Duration::from_secs(10),
};

/// What a holder needs.
pub(in crate::node) struct Setup {
    pub store: Arc<Store>,
    pub clock: Arc<dyn Clock>,
    pub token: Option<String>,
    /// Where large commits are made.
    pub spool: PathBuf,
    pub random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The primary, where it is another node and known.
    pub primary: Box<dyn Fn() -> Option<Member> + Send + Sync>,
}

/// The halt locks that this node holds.
pub(in crate::node) struct Holder(Arc<Shared>);

/// Those that are held, or on the way.
type Locks = BTreeMap<DbName, Option<Held>>;

struct Shared {
    setup: Setup,
    held: Mutex<Locks>,
    changed: Condvar,
}

/// A lock that is held.
struct Held {
    line: Arc<Line>,
    database: Arc<Database>,
    primary: NodeId,
}

impl Holder {
    pub fn new(setup: Setup) -> Holder {
        Holder(Arc::new(Shared { setup, held: Mutex::default(), changed: Condvar::new() }))
    }

    /// Only what this node gave is believed any more.
    pub fn only_from(&self, primary: Option<NodeId>) {
        for held in self.0.lock().values().flatten().filter(|held| primary != Some(held.primary)) {
            held.database.lose_halt();
            held.line.end("the primary is another one, or gone");
        }
    }

    /// Ends all of them, and waits for that up to `patience`.
    pub fn end_all(&self, patience: Duration) {
        self.only_from(None);
        let busy = |held: &mut Locks| !held.is_empty();
        drop(self.0.changed.wait_timeout_while(self.0.lock(), patience, busy));
    }
}

impl Halts for Holder {
    fn acquire(&self, db: &Arc<Database>) -> Result<HaltGuard, DbError> {
        if self.0.setup.store.is_writable() {
            // The primary needs none.
            return Ok(Box::new(()));
        }
        self.0.enter(db.name())?;
        match Shared::get(&self.0, db) {
            Ok(guard) => Ok(Box::new(guard)),
            Err(error) => {
                self.0.leave(db.name());
                Err(error)
            }
        }
    }
}

fn busy(db: &DbName, what: impl Into<String>) -> DbError {
    DbError::Busy { db: db.clone(), what: format!("the halt lock was not got: {}", what.into()) }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Locks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for others of this node.
    fn enter(&self, db: &DbName) -> Result<(), DbError> {
        let taken = |held: &mut Locks| held.contains_key(db);
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, taken);
        let (mut held, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(busy(db, "another application of this node has it"));
        }
        held.insert(db.clone(), None);
        Ok(())
    }

    fn leave(&self, db: &DbName) {
        self.lock().remove(db);
        self.changed.notify_all();
    }

    fn get(shared: &Arc<Shared>, db: &Arc<Database>) -> Result<Guard, DbError> {
        let (setup, name) = (&shared.setup, db.name());
        let primary = (setup.primary)().ok_or_else(|| busy(name, "no primary is known"))?;
        let url = primary.advertise_url.as_ref();
        let url = url.ok_or_else(|| busy(name, "the primary says not where its API is (advertise-url)"))?;
        let cluster = setup.store.cluster().ok_or_else(|| busy(name, "this node is of no cluster yet"))?;
        let id = HaltId::new((setup.random)());
        let claim = HaltClaim { db: name.clone(), id, node: setup.store.node_id(), cluster };
        let client = Client::new(url, setup.token.clone(), TIMEOUTS);
        let client = client.map_err(|error| busy(name, error.to_string()))?;
        let asked = setup.clock.elapsed();
        let halted = client.halt(&claim).map_err(|error| busy(name, error.to_string()))?;
        let (orders, todo) = channel();
        let line = Arc::new(Line { closed: AtomicBool::new(false), orders: Mutex::new(orders) });
        let begun = shared.wait_for(db, &halted).and_then(|()| db.begin_halt(Arc::clone(&line) as _));
        let worker = Worker {
            shared: Arc::clone(shared),
            database: Arc::clone(db),
            ttl: Duration::from_millis(halted.ttl_ms),
            heard: asked,
            claim,
            client,
            line: Arc::clone(&line),
            todo,
        };
        if let Err(error) = begun {
            worker.give_back();
            return Err(error);
        }
        let held = Held { line: Arc::clone(&line), database: Arc::clone(db), primary: primary.node };
        shared.lock().insert(name.clone(), Some(held));
        tracing::info!(db = %name, pos = %halted.pos, primary = primary.hostname, "this node has the halt lock: applications may write here");
        let thread = std::thread::Builder::new().name("litefs-halted".to_owned());
        if let Err(error) = thread.spawn(move || worker.run()) {
            // Nobody takes commits anywhere: they fail.
            db.lose_halt();
            return Err(busy(name, error.to_string()));
        }
        Ok(Guard(line))
    }

    /// Waits until everything is here that the primary has.
    fn wait_for(&self, db: &Database, halted: &Halted) -> Result<(), DbError> {
        let (news, deadline) = (self.setup.store.news(), Instant::now() + PATIENCE);
        loop {
            let seen = news.count();
            let here = db.pos();
            if here == halted.pos {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(busy(db.name(), format!("here is {here}, the primary has {}", halted.pos)));
            }
            news.wait(seen, left);
        }
    }
}

enum Order {
    Commit(Committed, Done),
    End(&'static str),
}

/// The way of commits to the thread that takes them to the primary.
struct Line {
    /// Nothing is taken any more.
    closed: AtomicBool,
    orders: Mutex<Sender<Order>>,
}

impl Line {
    fn end(&self, why: &'static str) {
        self.closed.store(true, Ordering::Release);
        self.send(Order::End(why));
    }

    /// Where nobody listens any more it is refused.
    fn send(&self, order: Order) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(unheard) = orders.send(order)
            && let Order::Commit(_, done) = unheard.0
        {
            done(Verdict::Refused);
        }
    }
}

impl Forward for Line {
    fn forward(&self, committed: Committed, done: Done) {
        if self.closed.load(Ordering::Acquire) {
            return done(Verdict::Refused);
        }
        self.send(Order::Commit(committed, done));
    }
}

/// The application that has `<db>-lock` open.
struct Guard(Arc<Line>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end("its application closed it");
    }
}

/// Why a commit did not get to the primary.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Log(#[from] crate::db::LogError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

struct Worker {
    shared: Arc<Shared>,
    database: Arc<Database>,
    claim: HaltClaim,
    client: Client,
    /// How long the primary keeps the lock without hearing of it.
    ttl: Duration,
    /// When it was asked last of what it said yes to.
    heard: Duration,
    line: Arc<Line>,
    todo: Receiver<Order>,
}

impl Worker {
    fn run(mut self) {
        let ended = self.serve();
        // Applications begin nothing more, and what they have begun fails.
        self.database.lose_halt();
        self.line.closed.store(true, Ordering::Release);
        let db = self.database.name().clone();
        match ended {
            Ok(why) => tracing::info!(%db, why, "the halt lock ends"),
            Err(why) => {
                tracing::warn!(%db, why, "the halt lock is lost: applications may not write here any more")
            }
        }
        self.refuse();
        self.give_back();
        let mut said = false;
        // While the mount is there: what it ends with is not waited for.
        while let Err(error) = self.database.end_halt(WRITERS) {
            self.refuse();
            let waits = matches!(error, DbError::Busy { .. });
            if !waits || self.shared.setup.store.is_writable() {
                tracing::debug!(%db, %error, "applications are not kept from writing");
                break;
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(%db, %error, "the halt lock has ended, and an application is still in a transaction");
            }
        }
        self.refuse();
        self.shared.leave(&db);
    }

    /// Takes commits to the primary until the lock ends; `Err` if it is lost.
    fn serve(&mut self) -> Result<&'static str, String> {
        let clock = Arc::clone(&self.shared.setup.clock);
        let mut due = self.heard + RENEW;
        loop {
            match self.todo.recv_timeout(due.saturating_sub(clock.elapsed())) {
                Ok(Order::Commit(committed, done)) => {
                    let asked = clock.elapsed();
                    match self.take(&committed) {
                        Ok(()) => {
                            (self.heard, due) = (asked, asked + RENEW);
                            done(Verdict::Archived);
                        }
                        Err(error) => {
                            self.database.lose_halt();
                            self.line.closed.store(true, Ordering::Release);
                            done(Verdict::Refused);
                            return Err(error.to_string());
                        }
                    }
                }
                Ok(Order::End(why)) => return Ok(why),
                Err(RecvTimeoutError::Disconnected) => return Ok("nobody needs it"),
                Err(RecvTimeoutError::Timeout) => {
                    self.renew(&*clock)?;
                    due = clock.elapsed() + RENEW;
                }
            }
        }
    }

    fn renew(&mut self, clock: &dyn Clock) -> Result<(), String> {
        let asked = clock.elapsed();
        match self.client.renew_halt(&self.claim) {
            Ok(()) => {
                self.heard = asked;
                Ok(())
            }
            Err(error @ ClientError::Answer { .. }) => Err(error.to_string()),
            Err(error) if clock.elapsed() >= self.heard + self.ttl => Err(error.to_string()),
            Err(error) => {
                tracing::debug!(%error, "the halt lock could not be renewed: tried again");
                Ok(())
            }
        }
    }

    /// Takes a commit to the primary; done when it has it.
    fn take(&self, committed: &Committed) -> Result<(), Unsent> {
        let setup = &self.shared.setup;
        let stored = setup.store.log().read(committed.place)?;
        let style = Style { codec: Codec::Lz4, node: self.claim.node, spool: &setup.spool };
        let post = committed.meta.post;
        match change_set(&stored, &style)?.body {
            Body::Bytes(bytes) => {
                let size = bytes.len() as u64;
                self.client.send_tx(&self.claim, post, Cursor::new(bytes), size)?;
            }
            Body::File(path) => {
                let file = File::open(&path)?;
                let size = file.metadata()?.len();
                let sent = self.client.send_tx(&self.claim, post, file, size);
                std::fs::remove_file(path)?;
                sent?;
            }
        }
        Ok(())
    }

    /// What came too late fails.
    fn refuse(&self) {
        for order in self.todo.try_iter() {
            if let Order::Commit(_, done) = order {
                done(Verdict::Refused);
            }
        }
    }

    fn give_back(&self) {
        if let Err(error) = self.client.end_halt(&self.claim) {
            tracing::debug!(%error, "the primary was not told that the halt lock is given back");
        }
    }
}
