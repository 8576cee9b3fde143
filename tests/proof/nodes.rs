//! A mounted node below which the power may go at every step, and what it is measured by:
//! the chain as of every position. Must not decide what happens to it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litefs::db::{Committed, Done, FileKind, Forward, Goal, Verdict};
use litefs::fuse::Passthrough;
use litefs::store::{Role, Store, StoreOptions};
use litefs::words::{DbName, Faults, NodeId, PageSum, Pgno, Pos, SystemClock};

use super::check::{Chain, integrity, is_whole};
use super::disk::Disk;
use super::support::mounted::{Client, Mounted};
use super::support::{PATIENCE, Scratch};
use super::workload::Random;
use super::world::{BOOT, World, scratch};

pub fn name() -> DbName {
    DbName::new("a.db").expect("a name")
}

pub const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

/// How applications commit.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// `None`: it changes.
    pub mode: Option<&'static str>,
    pub synchronous: &'static str,
    /// `storage.durability = "archive"`.
    pub archive_first: bool,
}

/// What both nodes are measured by.
pub struct Trial {
    pub setup: Setup,
    pub seed: u64,
    /// The chain as of every position that it had.
    pub known: Mutex<HashMap<Pos, Chain>>,
    /// The TXID of the last transaction that an application was told of.
    pub acknowledged: AtomicU64,
    pub points: AtomicU64,
    pub failed: AtomicBool,
}

impl Trial {
    pub fn known(&self, pos: Pos) -> Option<Chain> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&pos).cloned()
    }

    /// A transaction that the archive has.
    pub fn continues(&self, store: &Store, commit: &Committed) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = known.get(&commit.meta.pre).cloned().expect("it continues the chain");
        chain.apply(store, commit);
        known.insert(chain.pos, chain);
    }

    /// The chain with what a store captured when it was opened. `any`: an application may
    /// have committed that. Else it is what a transaction under the halt lock left in free
    /// leaf pages, which SQLite does not journal: a branch, which a node parks.
    pub fn taken_over(&self, store: &Store, any: bool) -> Option<Chain> {
        let commits = store.commits().take(|_| true);
        // After what is new here it may come back to a position of the chain.
        let new = commits.iter().position(|commit| self.known(commit.meta.post).is_none())?;
        let mut chain = self.known(commits[new].meta.pre)?;
        for commit in &commits[new..] {
            let leaves = chain.free_leaves();
            let stored = store.log().read(commit.place).expect("the log has it");
            if !any && !stored.pages.iter().all(|(pgno, _)| leaves.is_leaf(*pgno)) {
                return None;
            }
            chain.apply(store, commit);
        }
        Some(chain)
    }

    /// Transactions that may be missing where the application wrote them.
    pub fn allowed(&self) -> u64 {
        match (self.setup.mode, self.setup.synchronous) {
            // The archive has them.
            _ if self.setup.archive_first => u64::MAX,
            (Some("DELETE") | None, "FULL") => 1,
            (_, "FULL") => 0,
            _ => u64::MAX,
        }
    }
}

/// A node, and the disk below it.
pub struct Node {
    pub mounted: Option<Mounted>,
    pub client: Option<Client>,
    pub scratch: Arc<Scratch>,
    pub faults: Faults,
    pub watched: Arc<Watched>,
}

pub struct Watched {
    pub trial: Arc<Trial>,
    pub disk: Arc<Disk>,
    pub index: usize,
    /// It has the right to write.
    pub writes: AtomicBool,
    pub at_work: Mutex<()>,
}

impl Watched {
    /// What a loss of power leaves here is the chain as of one of its positions. Where
    /// applications write it may have one more transaction.
    pub fn power_goes(&self, step: &str) {
        let _one_at_a_time = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        let trial = &self.trial;
        if trial.failed.load(Ordering::Acquire) {
            return;
        }
        let point = trial.points.fetch_add(1, Ordering::AcqRel);
        let acknowledged = trial.acknowledged.load(Ordering::Acquire);
        let writes = self.writes.load(Ordering::Acquire);
        let mut random = Random(trial.seed << 32 | point);
        let dir = scratch();
        self.disk.lose_power(&dir.path().join("data"), &mut random);
        let what = format!(
            "{:?}, seed {}: no power at point {point} ({step}) of node {}, which {}, {acknowledged} acknowledged",
            trial.setup,
            trial.seed,
            self.index,
            if writes { "writes" } else { "follows" },
        );
        let again = World::try_open(dir.path(), "boot-2").unwrap_or_else(|error| panic!("{what}: {error}"));
        let Some(database) = again.store.known(&name()) else {
            assert!(acknowledged == 0 || !writes || trial.allowed() > 1, "{what}: nothing is left");
            return;
        };
        let pos = database.pos();
        // With synchronous=OFF what is left is taken over.
        let unsynced = trial.setup.synchronous == "OFF";
        let chain = trial.known(pos).or_else(|| trial.taken_over(&again.store, writes || unsynced));
        let last = || {
            let known = trial.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.keys().max_by_key(|pos| pos.txid).copied()
        };
        let chain = chain
            .unwrap_or_else(|| panic!("{what}: {pos} is no position of the chain, {:?} is its last", last()));
        assert_eq!(chain.pos, pos, "{what}");
        let path = database.path(FileKind::Database);
        if chain.is_empty() {
            // Of a first transaction nothing is left, or not enough.
            let bytes = std::fs::read(&path).unwrap_or_default();
            assert!(!is_whole(&bytes), "{what}: a database that nobody captured");
        } else {
            chain.assert_is(&std::fs::read(&path).unwrap_or_default(), &what);
            if !unsynced {
                integrity(&path, &what);
            }
        }
        if writes && !unsynced {
            let least = acknowledged.saturating_sub(trial.allowed());
            assert!(pos.txid.get() >= least, "{what}: left is {pos}");
        }
    }

    /// As `power_goes`; a panic must not unwind through the daemon.
    pub fn step(&self, step: &str) {
        let run = std::panic::AssertUnwindSafe(|| self.power_goes(step));
        if std::panic::catch_unwind(run).is_err() {
            self.trial.failed.store(true, Ordering::Release);
        }
    }
}

pub fn open_store(scratch: &Scratch, index: usize, faults: &Faults) -> Arc<Store> {
    let options = StoreOptions {
        dir: scratch.join("data"),
        boot_id: BOOT.to_owned(),
        new_node: NodeId::new(index as u64 + 1),
        clock: Arc::new(SystemClock),
        faults: faults.clone(),
    };
    Arc::new(Store::open(options).unwrap_or_else(|error| panic!("open a store: {error}")))
}

impl Node {
    pub fn start(trial: &Arc<Trial>, index: usize) -> Node {
        // In memory inode numbers, by which a disk knows its files, are not used again.
        let scratch = Arc::new(Scratch::at(scratch().keep()));
        let faults = Faults::none();
        let store = open_store(&scratch, index, &faults);
        let watched = Arc::new(Watched {
            trial: Arc::clone(trial),
            disk: Disk::watch(&scratch.join("data")),
            index,
            writes: AtomicBool::new(false),
            at_work: Mutex::default(),
        });
        let here = Arc::clone(&watched);
        faults.observe(move |point| here.step(point));
        let mut node = Node { mounted: None, client: None, scratch, faults, watched };
        node.mount(store);
        node
    }

    pub fn mount(&mut self, store: Arc<Store>) {
        let passthrough = match self.watched.trial.seed % 2 {
            0 => Passthrough::Auto,
            _ => Passthrough::Off,
        };
        let mounted = Mounted::mount(Arc::clone(&self.scratch), store, passthrough, false);
        let mounted = mounted.unwrap_or_else(|error| panic!("{error}"));
        mounted.store.set_archive_first(self.watched.trial.setup.archive_first);
        if self.watched.writes.load(Ordering::Acquire) {
            mounted.store.set_role(Role::Primary);
        } else {
            mounted.store.hold_writers(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        }
        self.mounted = Some(mounted);
    }

    /// kill -9: applications too.
    pub fn die(&mut self) {
        if let Some(client) = self.client.take() {
            client.kill();
        }
        self.mounted = None;
    }

    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("it runs")
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.mounted().store
    }

    pub fn client(&mut self) -> &mut Client {
        if self.client.is_none() {
            let mut client = self.mounted().connect("a.db");
            let trial = &self.watched.trial;
            if let Some(mode) = trial.setup.mode.filter(|mode| *mode != "WAL") {
                // Of the connection, not of the database.
                client.rows(&format!("PRAGMA journal_mode = {mode}"));
            }
            client.rows(&format!("PRAGMA synchronous = {}", trial.setup.synchronous));
            for sql in ["PRAGMA cache_size = 10", "PRAGMA cache_spill = 5", "PRAGMA wal_autocheckpoint = 12"]
            {
                client.rows(sql);
            }
            self.client = Some(client);
        }
        self.client.as_mut().expect("it is there")
    }
}

pub type Pages = BTreeMap<Pgno, (PageSum, Vec<u8>)>;

/// The changes of transactions of one log, the last of each page.
pub fn newest(log: &Store, batch: &[Committed]) -> (Pos, Goal, Pages) {
    let (first, last) = (batch.first().expect("one"), batch.last().expect("one"));
    let mut pages = BTreeMap::new();
    for commit in batch {
        let stored = log.log().read(commit.place).expect("read the log");
        for (index, (pgno, sum)) in stored.pages.iter().enumerate() {
            let mut page = Vec::new();
            stored.page(index, &mut page).expect("read a page");
            pages.insert(*pgno, (*sum, page));
        }
    }
    pages.retain(|pgno, _| pgno.get() <= last.meta.commit);
    let goal = Goal { pos: last.meta.post, page_size: last.meta.page_size, pages: last.meta.commit };
    (first.meta.pre, goal, pages)
}

/// Takes what a replica commits under the halt lock to the primary.
pub struct Taker {
    pub trial: Arc<Trial>,
    pub primary: Arc<Store>,
    pub replica: Arc<Store>,
}

impl Forward for Taker {
    fn forward(&self, committed: Committed, done: Done) {
        let (trial, primary, replica) =
            (Arc::clone(&self.trial), Arc::clone(&self.primary), Arc::clone(&self.replica));
        std::thread::spawn(move || {
            trial.continues(&replica, &committed);
            let (from, goal, pages) = newest(&replica, std::slice::from_ref(&committed));
            let database = primary.database(&name()).expect("it is there");
            let live = database.apply_live(from, goal, committed.meta.timestamp).expect("begun");
            let live = live.not_archived();
            for (pgno, (sum, page)) in &pages {
                live.page(*pgno, page, *sum).expect("spool");
            }
            live.finish(PATIENCE).unwrap_or_else(|error| panic!("take: {error}"));
            primary.log().sync().expect("durable");
            done(Verdict::Archived);
        });
    }
}
