//! Three nodes, one archive, a bank: money is moved among the accounts of several
//! databases while nodes are killed, frozen, stopped, promoted. Afterwards no money was
//! made or lost, all nodes have the same bytes, and every transfer that was acknowledged
//! is there, or parked. Real processes, real mounts, the storage lease.
//!
//! LITEFS_CHAOS_SECONDS=n for longer runs (20 by default), LITEFS_SEED=n for the same
//! faults again.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use rustix::process::Signal;
use support::node::{Node, Settings};
use support::scratch::Scratch;
use support::worker::{Sqlite, Worker};
use support::{can_mount, wait_for};

const LEASE: &str = "type = \"storage\"\nttl = \"2s\"";
const BANKS: [(&str, &str); 3] = [("bank0.db", "wal"), ("bank1.db", "delete"), ("branch/bank2.db", "wal")];
const ACCOUNTS: u32 = 10;
const OPENING: u32 = 1000;
const WRITERS: u64 = 2;

struct Cluster {
    nodes: Vec<Node>,
    up: Vec<bool>,
    frozen: Vec<bool>,
}

impl Cluster {
    fn new(base: &Path) -> Cluster {
        let node = |name: &str| {
            let settings = Settings { lease: LEASE, ..Settings::default() };
            let dir = base.join(name);
            std::fs::create_dir_all(&dir).expect("create the node's directory");
            Node::new(&dir, settings).with_archive(&base.join("archive")).advertised()
        };
        Cluster { nodes: ["a", "b", "c"].map(node).into(), up: vec![false; 3], frozen: vec![false; 3] }
    }

    fn primary(&self) -> Option<usize> {
        let role = |at: usize| self.nodes[at].try_role().is_some_and(|role| role == "primary");
        (0..self.nodes.len()).find(|at| self.up[*at] && !self.frozen[*at] && role(*at))
    }

    fn start(&mut self, at: usize) {
        if !self.up[at] {
            self.nodes[at].spawn();
            self.up[at] = true;
        }
    }

    fn thaw(&mut self, at: usize) {
        if std::mem::take(&mut self.frozen[at]) {
            self.nodes[at].signal(Signal::CONT);
        }
    }

    /// One thing that goes wrong, or is done on purpose; what it was.
    fn disturb(&mut self, random: &mut StdRng) -> String {
        let at = random.random_range(0..self.nodes.len());
        let running = self.up[at] && !self.frozen[at];
        match random.random_range(0..12) {
            0 | 1 if running => {
                self.nodes[at].kill();
                self.up[at] = false;
                format!("kill {at}")
            }
            2 if running => {
                self.nodes[at].signal(Signal::TERM);
                let _ = self.nodes[at].wait_end();
                self.up[at] = false;
                format!("stop {at}")
            }
            3 | 4 if running => {
                self.nodes[at].signal(Signal::STOP);
                self.frozen[at] = true;
                format!("freeze {at}")
            }
            5 | 6 if running => {
                let _ = self.nodes[at].try_post("/promote");
                format!("promote {at}")
            }
            7..10 if self.frozen[at] => {
                self.thaw(at);
                format!("thaw {at}")
            }
            _ if !self.up[at] => {
                self.start(at);
                format!("start {at}")
            }
            _ => "nothing".to_owned(),
        }
    }
}

fn open_banks(node: &Node) {
    std::fs::create_dir_all(node.file("branch")).expect("make a directory");
    for (bank, mode) in BANKS {
        let connection = Connection::open(node.file(bank)).expect("open the bank");
        let sql = format!(
            "PRAGMA journal_mode={mode}; BEGIN;
             CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER CHECK(balance >= 0));
             CREATE TABLE ledger(n INTEGER PRIMARY KEY);
             WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM c WHERE i < {}) INSERT INTO accounts SELECT i, {OPENING} FROM c;
             COMMIT",
            ACCOUNTS - 1
        );
        connection.execute_batch(&sql).expect("open the accounts");
    }
}

/// Moves money where a node takes it, until told to stop; the acknowledged transfers by
/// bank.
fn transfer(
    cluster: &Mutex<Cluster>,
    seed: u64,
    next: &AtomicU32,
    stop: &AtomicBool,
) -> BTreeMap<usize, BTreeSet<u32>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut acknowledged: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
    while !stop.load(Ordering::Acquire) {
        let bank = random.random_range(0..BANKS.len());
        let file = {
            let cluster = cluster.lock().expect("the cluster");
            cluster.primary().map(|at| cluster.nodes[at].file(BANKS[bank].0))
        };
        let Some(file) = file else {
            std::thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        let mut groups = Vec::new();
        let mut numbers = Vec::new();
        for _ in 0..random.random_range(1..8) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
            let amount = random.random_range(1..50);
            numbers.push(n);
            groups.push(vec![
                "BEGIN IMMEDIATE".to_owned(),
                format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}"),
                format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"),
                format!("INSERT INTO ledger VALUES({n})"),
                "COMMIT".to_owned(),
            ]);
        }
        // A process for each: a mount that hangs while its node is frozen must not hang
        // the next transfer.
        let mut worker = Worker::start(Sqlite::System);
        // Never made anew: the mount may be gone at this moment.
        let file = format!("file:{}?mode=rw", file.display());
        let opened = worker.open_with(Path::new(&file), Duration::from_millis(200), &[]);
        if !matches!(opened, Ok(Ok(()))) {
            continue;
        }
        let outcomes = worker.groups(&groups).unwrap_or_default();
        let done = numbers.into_iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
        acknowledged.entry(bank).or_default().extend(done.map(|(n, _)| n));
    }
    acknowledged
}

fn ledger(connection: &Connection) -> BTreeSet<u32> {
    let Ok(mut query) = connection.prepare("SELECT n FROM ledger") else { return BTreeSet::new() };
    let rows = query.query_map([], |row| row.get(0)).expect("query");
    rows.collect::<Result<_, _>>().expect("read the ledger")
}

/// Transfers in the branches of a bank that a node keeps.
fn parked(node: &Node, bank: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for dir in std::fs::read_dir(node.data().join("parked")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(dir.path().join("parked.json")).expect("what is parked");
        let what: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let file = dir.path().join("database");
        if what["db"] == bank && file.exists() {
            found.extend(ledger(&Connection::open(file).expect("open the branch")));
        }
    }
    found
}

/// Everybody is back, one is the primary, all are where it is.
fn heal(cluster: &mut Cluster) {
    for at in 0..cluster.nodes.len() {
        cluster.thaw(at);
        cluster.start(at);
    }
    wait_for("all nodes are where the primary is, and the archive has it", || {
        for at in 0..cluster.nodes.len() {
            assert!(!cluster.nodes[at].has_ended(), "node {at} has ended by itself");
        }
        cluster.primary()?;
        let positions = |node: &Node| {
            let status = node.try_status()?;
            let databases = status["databases"].as_array()?.clone();
            let at = |database: &serde_json::Value| {
                (database["name"].to_string(), database["pos"].to_string(), database["unarchived"].as_u64())
            };
            Some(databases.iter().map(at).collect::<Vec<_>>())
        };
        let all: Option<Vec<_>> = cluster.nodes.iter().map(positions).collect();
        let all = all?;
        let archived = |node: &Vec<(String, String, Option<u64>)>| {
            node.len() == BANKS.len() && node.iter().all(|(_, _, unarchived)| *unarchived == Some(0))
        };
        (all.iter().all(|node| *node == all[0]) && archived(&all[0])).then_some(())
    });
}

#[test]
fn money_is_neither_made_nor_lost_whatever_happens_to_the_nodes() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("LITEFS_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(number("LITEFS_CHAOS_SECONDS").unwrap_or(20));
    println!("LITEFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = Scratch::new("chaos");
    let mut cluster = Cluster::new(scratch.path());
    cluster.start(0);
    cluster.nodes[0].wait_primary().expect("the first node is the primary");
    open_banks(&cluster.nodes[0]);
    cluster.nodes[0].wait_archived(&BANKS.map(|(bank, _)| bank));
    for at in 1..3 {
        cluster.start(at);
    }
    let cluster = Mutex::new(cluster);
    let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut said = Vec::new();
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (cluster, next, stop) = (&cluster, &next, &stop);
                scope.spawn(move || transfer(cluster, seed ^ writer, next, stop))
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < time {
            let pause = Duration::from_millis(random.random_range(50..1500));
            std::thread::park_timeout(pause);
            said.push(cluster.lock().expect("the cluster").disturb(&mut random));
        }
        {
            // A frozen node's mount would keep the writers.
            let mut cluster = cluster.lock().expect("the cluster");
            (0..3).for_each(|at| cluster.thaw(at));
        }
        stop.store(true, Ordering::Release);
        let mut all: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for writer in writers {
            for (bank, numbers) in writer.join().expect("a writer") {
                all.entry(bank).or_default().extend(numbers);
            }
        }
        all
    });
    println!("{said:?}");
    let mut cluster = cluster.into_inner().expect("the cluster");
    heal(&mut cluster);
    for (at, (bank, _)) in BANKS.iter().enumerate() {
        let mut images = Vec::new();
        let mut found = BTreeSet::new();
        let mut aside = BTreeSet::new();
        for node in &cluster.nodes {
            let export = node.get(&format!("/export?name={bank}"));
            assert_eq!(export.status, 200, "export {bank}");
            let file = scratch.join("export.db");
            std::fs::write(&file, &export.body).expect("keep the export");
            let connection = Connection::open(&file).expect("open the export");
            let check: String =
                connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
            assert_eq!(check, "ok", "{bank}");
            let sum: u32 = connection
                .query_row("SELECT sum(balance) FROM accounts", [], |row| row.get(0))
                .expect("the sum");
            assert_eq!(sum, ACCOUNTS * OPENING, "{bank}: money was made or lost");
            found = ledger(&connection);
            aside.extend(parked(node, bank));
            images.push(export.body);
        }
        assert!(images.iter().all(|image| *image == images[0]), "{bank}: the nodes differ");
        let wanted = acknowledged.get(&at).cloned().unwrap_or_default();
        let nowhere: Vec<_> = wanted.iter().filter(|n| !found.contains(n) && !aside.contains(n)).collect();
        assert!(nowhere.is_empty(), "{bank}: acknowledged, and nowhere: {nowhere:?}");
        let only_parked = wanted.iter().filter(|n| !found.contains(n)).count();
        println!("{bank}: {} acknowledged, {only_parked} of them parked", wanted.len());
    }
    for node in &mut cluster.nodes {
        node.stop();
    }
}
