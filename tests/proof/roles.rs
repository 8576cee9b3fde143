//! The power goes on nodes that lose the right to write, follow, catch up and get it
//! again: on real mounts, before every step of the daemon and between them. Even seeds run
//! with passthrough, odd ones without.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use litefs::db::{Committed, Done, FileKind, Forward, Goal, Verdict};
use litefs::fuse::Passthrough;
use litefs::store::{Role, Store, StoreOptions};
use litefs::words::{DbName, Faults, NodeId, PageSum, Pgno, Pos, SystemClock};

use super::check::{Chain, integrity, is_whole};
use super::disk::Disk;
use super::support::mounted::{Client, Mounted};
use super::support::{PATIENCE, Scratch, can_mount};
use super::workload::{Random, seed_offset};
use super::world::{BOOT, World, scratch};

/// Transactions of a trial.
const TRANSACTIONS: u64 = 14;

const SCHEMA: [&str; 4] = [
    "CREATE TABLE state (id INTEGER PRIMARY KEY, n INTEGER)",
    "INSERT INTO state VALUES (1, 0)",
    "CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v BLOB)",
    "CREATE INDEX tk ON t (k)",
];

fn name() -> DbName {
    DbName::new("a.db").expect("a name")
}

const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];

/// How applications commit.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// `None`: it changes.
    mode: Option<&'static str>,
    synchronous: &'static str,
    /// `storage.durability = "archive"`.
    archive_first: bool,
}

/// What both nodes are measured by.
struct Trial {
    setup: Setup,
    seed: u64,
    /// The chain as of every position that it had.
    known: Mutex<HashMap<Pos, Chain>>,
    /// The TXID of the last transaction that an application was told of.
    acknowledged: AtomicU64,
    points: AtomicU64,
    failed: AtomicBool,
}

impl Trial {
    fn known(&self, pos: Pos) -> Option<Chain> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&pos).cloned()
    }

    /// A transaction that the archive has.
    fn continues(&self, store: &Store, commit: &Committed) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = known.get(&commit.meta.pre).cloned().expect("it continues the chain");
        chain.apply(store, commit);
        known.insert(chain.pos, chain);
    }

    /// The chain with what a store captured when it was opened. `any`: an application may
    /// have committed that. Else it is what a transaction under the halt lock left in free
    /// leaf pages, which SQLite does not journal: a branch, which a node parks.
    fn taken_over(&self, store: &Store, any: bool) -> Option<Chain> {
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
    fn allowed(&self) -> u64 {
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
struct Node {
    mounted: Option<Mounted>,
    client: Option<Client>,
    scratch: Arc<Scratch>,
    faults: Faults,
    watched: Arc<Watched>,
}

struct Watched {
    trial: Arc<Trial>,
    disk: Arc<Disk>,
    index: usize,
    /// It has the right to write.
    writes: AtomicBool,
    at_work: Mutex<()>,
}

impl Watched {
    /// What a loss of power leaves here is the chain as of one of its positions. Where
    /// applications write it may have one more transaction.
    fn power_goes(&self, step: &str) {
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
    fn step(&self, step: &str) {
        let run = std::panic::AssertUnwindSafe(|| self.power_goes(step));
        if std::panic::catch_unwind(run).is_err() {
            self.trial.failed.store(true, Ordering::Release);
        }
    }
}

fn open_store(scratch: &Scratch, index: usize, faults: &Faults) -> Arc<Store> {
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
    fn start(trial: &Arc<Trial>, index: usize) -> Node {
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

    fn mount(&mut self, store: Arc<Store>) {
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
    fn die(&mut self) {
        if let Some(client) = self.client.take() {
            client.kill();
        }
        self.mounted = None;
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("it runs")
    }

    fn store(&self) -> &Arc<Store> {
        &self.mounted().store
    }

    fn client(&mut self) -> &mut Client {
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

type Pages = BTreeMap<Pgno, (PageSum, Vec<u8>)>;

/// The changes of transactions of one log, the last of each page.
fn newest(log: &Store, batch: &[Committed]) -> (Pos, Goal, Pages) {
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
struct Taker {
    trial: Arc<Trial>,
    primary: Arc<Store>,
    replica: Arc<Store>,
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

/// Two nodes; the one that writes is `nodes[primary]`.
struct Pair {
    trial: Arc<Trial>,
    nodes: [Node; 2],
    primary: usize,
    /// What was published, and is not carried over.
    published: Vec<Committed>,
    random: Random,
}

impl Pair {
    fn writer(&mut self) -> &mut Node {
        &mut self.nodes[self.primary]
    }

    fn follower(&mut self) -> &mut Node {
        &mut self.nodes[1 - self.primary]
    }

    /// Between two steps of the test.
    fn rest(&self, step: &str) {
        println!("{step}, {} points", self.trial.points.load(Ordering::Acquire));
        self.nodes.iter().for_each(|node| node.watched.step(step));
        assert!(!self.trial.failed.load(Ordering::Acquire), "a check at some step failed");
    }

    /// Publishes what waits for that.
    fn publish(&mut self) {
        let store = Arc::clone(self.writer().store());
        let mut taken = store.commits().take(|_| true);
        // A store that was opened again does not know what was published.
        taken.retain(|commit| self.trial.known(commit.meta.post).is_none());
        taken.iter().for_each(|commit| self.trial.continues(&store, commit));
        store.commits().published();
        self.published.append(&mut taken);
    }

    /// What the primary committed since the last call.
    fn committed(&mut self) -> Vec<Committed> {
        for database in self.writer().store().databases() {
            database.current_pos().expect("capture");
        }
        self.publish();
        std::mem::take(&mut self.published)
    }

    /// A statement of the application on the node that writes.
    fn write(&mut self, sql: &str) {
        if !self.trial.setup.archive_first {
            self.writer().client().rows(sql);
            return;
        }
        self.writer().client().begin(sql);
        loop {
            let answer = self.writer().client().answer_within(Duration::from_millis(2));
            if let Some(answer) = answer {
                return answer.unwrap_or_else(|text| panic!("{sql}: {text}"));
            }
            self.publish();
        }
    }

    /// Carries everything over to the node that follows.
    fn carry(&mut self) {
        for batch in self.committed().chunk_by(|a, b| a.meta.page_size == b.meta.page_size) {
            let (from, goal, pages) = newest(self.writer().store(), batch);
            let database = self.follower().store().entry(&name()).expect("an entry");
            let live = database.apply_live(from, goal, batch[0].meta.timestamp).expect("begun");
            for (pgno, (sum, page)) in pages.iter().rev() {
                live.page(*pgno, page, *sum).expect("spool");
            }
            live.finish(PATIENCE).unwrap_or_else(|error| panic!("apply: {error}"));
        }
        self.rest("carried");
    }

    /// The node that follows is away, and catches up before it is mounted again.
    fn catch_up(&mut self) {
        self.follower().die();
        self.rest("died");
        self.transaction();
        let commits = self.committed();
        let index = 1 - self.primary;
        let store = open_store(&self.nodes[index].scratch, index, &self.nodes[index].faults);
        self.rest("opened");
        let database = store.entry(&name()).expect("an entry");
        for batch in commits.chunk_by(|a, b| a.meta.page_size == b.meta.page_size) {
            let (from, goal, pages) = newest(self.writer().store(), batch);
            assert_eq!(database.pos(), from, "it came back where it was");
            let applying = database.apply(goal).expect("begun");
            for (pgno, (sum, page)) in &pages {
                applying.page(*pgno, page, *sum).expect("written");
            }
            applying.finish().unwrap_or_else(|error| panic!("catch up: {error}"));
        }
        self.rest("caught up");
        drop(database);
        self.nodes[index].mount(store);
    }

    /// The primary dies, and is the primary again.
    fn start_again(&mut self) {
        let index = self.primary;
        self.nodes[index].die();
        self.rest("died");
        let store = open_store(&self.nodes[index].scratch, index, &self.nodes[index].faults);
        self.nodes[index].mount(store);
        self.carry();
    }

    fn hand_over(&mut self) {
        let store = Arc::clone(self.writer().store());
        store.set_role(Role::default());
        store.hold_writers(PATIENCE).expect("held");
        self.carry();
        self.writer().watched.writes.store(false, Ordering::Release);
        self.primary = 1 - self.primary;
        self.writer().store().set_role(Role::Primary);
        self.writer().store().release_writers().expect("released");
        self.writer().watched.writes.store(true, Ordering::Release);
        self.rest("handed over");
    }

    fn script(&mut self) -> Vec<String> {
        let (rows, part, kind) = (1 + self.random.below(20), self.random.below(4), self.random.below(6));
        let insert = |rows: u64| {
            format!(
                "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows}) \
                 INSERT INTO t(k, v) SELECT abs(random()) % 1000, randomblob(100 + abs(random()) % 900) FROM c"
            )
        };
        let change = match kind {
            0 => insert(1),
            1 => format!("DELETE FROM t WHERE id % 4 = {part}"),
            2 => "UPDATE t SET v = randomblob(length(v)), k = k + 1 WHERE id % 3 = 0".to_owned(),
            _ => insert(rows),
        };
        let rolled_back = self.random.below(3) == 0;
        let mut script = vec!["BEGIN IMMEDIATE".to_owned(), "UPDATE state SET n = n + 1".to_owned(), change];
        script.push("COMMIT".to_owned());
        if rolled_back {
            let before = ["BEGIN IMMEDIATE".to_owned(), insert(30), "ROLLBACK".to_owned()];
            script.splice(0..0, before);
        }
        script
    }

    fn transaction(&mut self) {
        for sql in self.script() {
            self.write(&sql);
        }
        self.acknowledged("committed");
    }

    /// What was committed so far the application knows of.
    fn acknowledged(&mut self, step: &str) {
        let database = self.writer().store().known(&name()).expect("it is there");
        let pos = database.current_pos().expect("capture");
        // Who drops a database does not wait.
        let waits = self.trial.setup.archive_first && step != "dropped";
        assert!(!waits || self.trial.known(pos).is_some(), "{step}: the archive does not have {pos}");
        self.trial.acknowledged.store(pos.txid.get(), Ordering::Release);
        self.rest(step);
    }

    /// The node that follows writes under the halt lock.
    fn halted(&mut self) {
        let primary = Arc::clone(self.writer().store());
        let replica = Arc::clone(self.follower().store());
        let here = replica.database(&name()).expect("it is there");
        let there = primary.database(&name()).expect("it is there");
        there.reserve_for_other(PATIENCE).expect("reserved");
        let taker = Taker { trial: Arc::clone(&self.trial), primary, replica };
        // The mount refuses the lock where a WAL is open whose writes it does not see.
        if let Some(client) = self.follower().client.take() {
            client.close();
        }
        here.begin_halt(Arc::new(taker)).expect("halted");
        self.rest("halted");
        let script = self.script();
        let client = self.follower().client();
        script.iter().for_each(|sql| drop(client.rows(sql)));
        self.acknowledged("committed under the halt lock");
        here.end_halt(PATIENCE).expect("ended");
        there.release_writers().expect("released");
        self.rest("the halt lock has ended");
    }

    fn other_page_size(&mut self) {
        let size = ["512", "1024", "4096"][self.random.below(3) as usize];
        self.write(&format!("PRAGMA page_size = {size}"));
        self.write("VACUUM");
        self.acknowledged("has another page size");
        self.carry();
    }

    /// In another journal mode, for which nobody else may have the database open.
    fn other_mode(&mut self) {
        let mode = MODES[self.random.below(4) as usize];
        self.nodes.iter_mut().filter_map(|node| node.client.take()).for_each(Client::close);
        self.write(&format!("PRAGMA journal_mode = {mode}"));
        self.acknowledged(mode);
        self.carry();
    }

    /// The database goes, and comes again.
    fn drop_database(&mut self) {
        self.nodes.iter_mut().filter_map(|node| node.client.take()).for_each(Client::close);
        std::fs::remove_file(self.writer().mounted().path("a.db")).expect("dropped");
        self.acknowledged("dropped");
        self.carry();
        self.make();
    }

    fn make(&mut self) {
        if let Some(mode) = self.trial.setup.mode {
            self.write(&format!("PRAGMA journal_mode = {mode}"));
        }
        for sql in SCHEMA {
            self.write(sql);
        }
        self.acknowledged("made");
        self.carry();
    }

    /// The node that follows loses what it has, and restores it.
    fn restore(&mut self) {
        self.follower().die();
        let there = self.writer().store().known(&name()).expect("it is there").pos();
        let chain = self.trial.known(there).expect("a position of the chain");
        let index = 1 - self.primary;
        let store = open_store(&self.nodes[index].scratch, index, &self.nodes[index].faults);
        let database = store.entry(&name()).expect("an entry");
        let incoming = database.install(chain.goal()).expect("begun");
        for (pgno, page) in chain.pages() {
            incoming.page(pgno, page, PageSum::of(pgno, page)).expect("written");
        }
        self.rest("restoring");
        incoming.finish().unwrap_or_else(|error| panic!("restore: {error}"));
        self.rest("restored");
        drop(database);
        self.nodes[index].mount(store);
    }
}

fn checkpoint(node: &Node) {
    node.store().checkpoint().expect("a checkpoint");
}

fn run(setup: Setup, seed: u64) {
    let seed = seed + seed_offset();
    println!("{setup:?}, seed {seed}");
    let trial = Arc::new(Trial {
        setup,
        seed,
        known: Mutex::new(HashMap::from([(Pos::ZERO, Chain::default())])),
        acknowledged: AtomicU64::default(),
        points: AtomicU64::default(),
        failed: AtomicBool::new(false),
    });
    let nodes = [Node::start(&trial, 0), Node::start(&trial, 1)];
    nodes[0].watched.writes.store(true, Ordering::Release);
    nodes[0].store().set_role(Role::Primary);
    nodes[0].store().release_writers().expect("released");
    let mut pair =
        Pair { trial: Arc::clone(&trial), nodes, primary: 0, published: Vec::new(), random: Random(seed) };
    pair.make();
    for n in 1..=TRANSACTIONS {
        let event = pair.random.below(16);
        println!("transaction {n}, event {event}, node {} writes", pair.primary);
        match event {
            0 => pair.catch_up(),
            10 | 11 if !setup.archive_first => pair.halted(),
            _ => pair.transaction(),
        }
        pair.carry();
        match event {
            1..4 => pair.hand_over(),
            4 | 5 => checkpoint(pair.writer()),
            6 | 7 => checkpoint(pair.follower()),
            8 => pair.start_again(),
            9 if setup.mode.is_some_and(|mode| mode != "WAL") => pair.other_page_size(),
            9 | 12 | 13 if setup.mode.is_none() => pair.other_mode(),
            14 => pair.drop_database(),
            15 => pair.restore(),
            _ => {}
        }
        pair.rest("between two transactions");
    }
    println!("{} points", trial.points.load(Ordering::Relaxed));
}

const fn setup(mode: &'static str, synchronous: &'static str) -> Setup {
    Setup { mode: Some(mode), synchronous, archive_first: false }
}

#[test]
fn a_loss_of_power_where_roles_change_leaves_a_position_of_the_chain_in_rollback_modes() {
    if !can_mount() {
        return;
    }
    for (seed, mode) in ["DELETE", "TRUNCATE", "PERSIST"].into_iter().enumerate() {
        run(setup(mode, "FULL"), 60 + seed as u64);
        run(setup(mode, "NORMAL"), 71 + seed as u64);
    }
}

#[test]
fn a_loss_of_power_where_roles_change_leaves_a_position_of_the_chain_in_wal_mode() {
    if !can_mount() {
        return;
    }
    for seed in 63..65 {
        run(setup("WAL", "FULL"), seed);
        run(setup("WAL", "NORMAL"), seed + 10);
    }
    // A commit under the halt lock whose frames were written twice was handed to nobody.
    run(setup("WAL", "FULL"), 5063);
}

#[test]
fn a_loss_of_power_where_roles_and_journal_modes_change_leaves_a_position_of_the_chain() {
    if !can_mount() {
        return;
    }
    for (seed, synchronous) in ["FULL", "NORMAL"].into_iter().enumerate() {
        run(Setup { mode: None, synchronous, archive_first: false }, 66 + seed as u64);
    }
}

#[test]
fn a_loss_of_power_where_commits_wait_for_the_archive_leaves_a_position_of_the_chain() {
    if !can_mount() {
        return;
    }
    for (seed, mode) in MODES.into_iter().enumerate() {
        run(Setup { archive_first: true, ..setup(mode, "FULL") }, 80 + seed as u64);
    }
}

#[test]
fn a_loss_of_power_where_roles_change_without_any_fsync_leaves_a_chain() {
    if !can_mount() {
        return;
    }
    for (seed, mode) in MODES.into_iter().enumerate() {
        run(setup(mode, "OFF"), 90 + seed as u64);
    }
}
