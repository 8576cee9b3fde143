//! The power goes on nodes that lose the right to write, follow, catch up and get it
//! again: on real mounts, before every step of the daemon and between them. Even seeds run
//! with passthrough, odd ones without.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use litefs::db::Committed;
use litefs::store::Role;
use litefs::words::{PageSum, Pos};

use super::check::Chain;
use super::nodes::{MODES, Node, Setup, Taker, Trial, name, newest, open_store};
use super::support::mounted::Client;
use super::support::{PATIENCE, can_mount};
use super::workload::{Random, seed_offset};

/// Transactions of a trial.
const TRANSACTIONS: u64 = 14;

const SCHEMA: [&str; 4] = [
    "CREATE TABLE state (id INTEGER PRIMARY KEY, n INTEGER)",
    "INSERT INTO state VALUES (1, 0)",
    "CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v BLOB)",
    "CREATE INDEX tk ON t (k)",
];

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
