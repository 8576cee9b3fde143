//! Two nodes, one bucket, whatever happens: started, stopped, killed, frozen, robbed of
//! their disks, written to, in any order. Every acknowledged transaction is accounted
//! for: in the chain, or parked; or it was on a disk that was lost before the archive
//! had it. With storage.durability = "archive" (every other seed) it is in the chain.
//!
//! Runs for about a minute; LITEFS_INTERLEAVINGS=200 runs that many, LITEFS_SEED=n
//! begins with seed n (scripts/interleavings).

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use rustix::process::Signal;
use support::line::Line;
use support::worker::{Sqlite, Worker};
use support::{Node, Outside, PATIENCE, Scratch, Settings, can_mount, process, wait_for};

const LEASE: &str = "type = \"storage\"\nttl = \"2s\"";
/// A node that asks the primary for the lease as soon as it stands at the head.
const PROMOTE: &str = "type = \"storage\"\nttl = \"2s\"\npromote = true";
const STEPS: usize = 14;
/// How long all of it may take where no number is asked for.
const BUDGET: Duration = Duration::from_secs(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Up,
    Frozen,
}

/// What happened in one run.
#[derive(Debug, Default)]
struct Tally {
    runs: u32,
    acknowledged: usize,
    in_chain: usize,
    parked: usize,
    wiped: usize,
    /// Of the acknowledged, with storage.durability = "archive".
    archive_first: usize,
}

/// What a commit waits for (storage.durability).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    Async,
    Archive,
}

struct Pair {
    nodes: [Node; 2],
    states: [State; 2],
    /// Whether it ended by a stop, not by a kill.
    clean: [bool; 2],
    acknowledged: [BTreeSet<u32>; 2],
    /// What was only on a disk that is lost.
    wiped: BTreeSet<u32>,
    next: u32,
    durability: Durability,
    scratch: Scratch,
    env: Vec<(String, String)>,
    said: Vec<String>,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        Pair::with(seed, Durability::Async)
    }

    fn with(seed: u64, durability: Durability) -> Pair {
        let scratch = Scratch::new(&format!("interleaving-{seed}"));
        let (url, env) = match Outside::minio() {
            Some(minio) => {
                let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
                (minio.url_of(&prefix), minio.environment().to_vec())
            }
            None => (format!("file://{}", scratch.join("archive").display()), Vec::new()),
        };
        let storage = match durability {
            Durability::Async => String::new(),
            Durability::Archive => "durability = \"archive\"".to_owned(),
        };
        let node = |name: &str| {
            let (storage, env) = (storage.clone(), env.clone());
            let settings = Settings { lease: LEASE, storage, env, ..Settings::default() };
            let dir = scratch.join(name);
            std::fs::create_dir_all(&dir).expect("create the node's directory");
            Node::new(&dir, settings).with_archive_url(&url).advertised()
        };
        Pair {
            nodes: [node("a"), node("b")],
            states: [State::Down; 2],
            clean: [true; 2],
            acknowledged: Default::default(),
            wiped: BTreeSet::new(),
            next: 0,
            durability,
            scratch,
            env,
            said: Vec::new(),
        }
    }

    fn say(&mut self, what: &str, at: usize) {
        self.said.push(format!("{what} {}", ["a", "b"][at]));
    }

    fn start(&mut self, at: usize) {
        if self.states[at] == State::Down {
            self.say("start", at);
            self.nodes[at].spawn();
            self.states[at] = State::Up;
        }
    }

    fn stop(&mut self, at: usize) {
        if self.states[at] == State::Up {
            self.say("stop", at);
            self.nodes[at].signal(Signal::TERM);
            let status = self.nodes[at].wait_end();
            let code = status.code();
            // Whose lease ends just then cannot put any more: it says so, and keeps it.
            let kept = code == Some(1)
                && self.nodes[at].log().contains("change sets that the archive does not have");
            // Nor does one end cleanly that has not come so far as to listen for signals.
            let early = status.signal() == Some(Signal::TERM.as_raw());
            assert!(code == Some(0) || kept || early, "after SIGTERM the node ended with {status:?}");
            self.states[at] = State::Down;
            self.clean[at] = code == Some(0) || early && self.clean[at];
        }
    }

    fn kill(&mut self, at: usize) {
        if self.states[at] != State::Down {
            self.say("kill", at);
            self.nodes[at].kill();
            (self.states[at], self.clean[at]) = (State::Down, false);
        }
    }

    fn freeze(&mut self, at: usize) {
        if self.states[at] == State::Up {
            self.say("freeze", at);
            self.nodes[at].signal(Signal::STOP);
            self.states[at] = State::Frozen;
        }
    }

    fn thaw(&mut self, at: usize) {
        if self.states[at] == State::Frozen {
            self.say("thaw", at);
            self.nodes[at].signal(Signal::CONT);
            self.states[at] = State::Up;
        }
    }

    fn wipe(&mut self, at: usize) {
        if self.states[at] != State::Down {
            return;
        }
        self.say("wipe", at);
        let archived = self.archived();
        let only_here: BTreeSet<u32> = self.acknowledged[at].difference(&archived).copied().collect();
        if self.durability == Durability::Archive {
            assert!(only_here.is_empty(), "acknowledged before the archive had it: {only_here:?}");
        }
        if self.clean[at] {
            let parked = parked_on(&self.nodes[at]);
            let lost: Vec<_> = only_here.difference(&parked).collect();
            assert!(lost.is_empty(), "after a stop these were neither in the archive nor parked: {lost:?}");
        }
        self.wiped.extend(only_here);
        self.nodes[at].wipe_data();
        self.clean[at] = true;
    }

    fn primary(&self) -> Option<usize> {
        (0..2).find(|at| self.states[*at] == State::Up && self.nodes[*at].is_primary())
    }

    /// Writes a few numbers where they can be written; waits a moment for such a node.
    fn write(&mut self, count: u32) {
        let begin = Instant::now();
        let at = loop {
            match self.primary() {
                Some(at) => break at,
                None if begin.elapsed() > Duration::from_secs(4) => return,
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        self.say("write", at);
        let numbers: Vec<u32> = (self.next..self.next + count).collect();
        self.next += count;
        self.acknowledged[at].extend(insert(&self.nodes[at], &numbers));
    }

    fn litefs(&self, args: &[&str]) -> process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        let env = self.env.iter().map(|(name, value)| (name, value));
        process::run(command.args(args).args(["--storage", &self.nodes[0].archive_url()]).envs(env))
    }

    /// What the archive has, in its chain.
    fn chain(&self) -> BTreeSet<u32> {
        let file = self.scratch.join("chain.db");
        let path = file.display().to_string();
        let output = self.litefs(&["restore", "--name", "app.db", "-o", &path, "--force"]);
        if output.code() != Some(0) {
            assert!(
                output.stderr.contains("no database") || output.stderr.contains("no archive"),
                "{output:?}"
            );
            return BTreeSet::new();
        }
        numbers(&file)
    }

    /// What the archive has, parked.
    fn parked(&self) -> BTreeSet<u32> {
        let output = self.litefs(&["parked", "list", "--json"]);
        if output.code() != Some(0) {
            assert!(output.stderr.contains("no archive"), "{output:?}");
            return BTreeSet::new();
        }
        let list: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
        let mut found = BTreeSet::new();
        for branch in list.as_array().expect("a list").iter().filter(|branch| !branch["size"].is_null()) {
            let file = self.scratch.join("branch.db");
            let (id, path) = (branch["id"].as_str().expect("an id"), file.display().to_string());
            let output = self.litefs(&["parked", "export", id, "-o", &path, "--force"]);
            assert_eq!(output.code(), Some(0), "{output:?}");
            found.extend(numbers(&file));
        }
        found
    }

    fn archived(&self) -> BTreeSet<u32> {
        self.chain().union(&self.parked()).copied().collect()
    }

    fn becomes_primary(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        wait_for("the node becomes primary", || {
            assert!(!node.has_ended(), "the node has ended by itself");
            node.is_primary().then_some(())
        });
    }

    /// Everybody comes back; each has its turn, so that each publishes or parks what it
    /// has.
    fn settle(&mut self, random: &mut StdRng) {
        let first = random.random_range(0..2);
        for at in [first, 1 - first] {
            self.thaw(at);
            self.start(at);
        }
        // On a busy machine the lease may be lost and won again at any moment.
        for _ in 0..3 {
            let at = wait_for("one of them is primary", || self.primary());
            self.stop(at);
            self.becomes_primary(1 - at);
            self.start(at);
        }
        let at = wait_for("one of them is primary", || self.primary());
        self.stop(1 - at);
        self.becomes_primary(at);
        self.stop(at);
    }

    fn check(&self, tally: &mut Tally) {
        let verify = self.litefs(&["verify", "--deep"]);
        assert_eq!(verify.code(), Some(0), "{verify:?}");
        let chain = self.chain();
        let mut parked = self.parked();
        self.nodes.iter().for_each(|node| parked.extend(parked_on(node)));
        let acknowledged: BTreeSet<u32> =
            self.acknowledged[0].union(&self.acknowledged[1]).copied().collect();
        let nowhere: Vec<_> = acknowledged
            .iter()
            .filter(|n| !chain.contains(n) && !parked.contains(n) && !self.wiped.contains(n))
            .collect();
        assert!(nowhere.is_empty(), "acknowledged, and nowhere: {nowhere:?}");
        if self.durability == Durability::Archive {
            let elsewhere: Vec<_> = acknowledged.difference(&chain).collect();
            assert!(elsewhere.is_empty(), "acknowledged, and not in the chain: {elsewhere:?}");
            tally.archive_first += acknowledged.len();
        }
        tally.runs += 1;
        tally.acknowledged += acknowledged.len();
        tally.in_chain += acknowledged.intersection(&chain).count();
        let rest: BTreeSet<u32> = acknowledged.difference(&chain).copied().collect();
        tally.parked += rest.intersection(&parked).count();
        tally.wiped += rest.difference(&parked).count();
    }
}

/// Inserts the numbers through another process; those that SQLite acknowledged.
fn insert(node: &Node, numbers: &[u32]) -> Vec<u32> {
    let mut worker = Worker::start(Sqlite::System);
    let ddl = "CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY)";
    match worker.open_with(&node.file("app.db"), Duration::from_secs(5), &["PRAGMA journal_mode=WAL", ddl]) {
        Ok(Ok(())) => {}
        _ => return Vec::new(),
    }
    let groups: Vec<Vec<String>> =
        numbers.iter().map(|number| vec![format!("INSERT INTO t VALUES({number})")]).collect();
    let outcomes = worker.groups(&groups).unwrap_or_default();
    numbers.iter().copied().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(n, _)| n).collect()
}

/// The numbers in a database file.
fn numbers(file: &Path) -> BTreeSet<u32> {
    let connection = Connection::open(file).expect("open the database");
    let integrity: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
    assert_eq!(integrity, "ok", "{}", file.display());
    let Ok(mut query) = connection.prepare("SELECT n FROM t") else { return BTreeSet::new() };
    let rows = query.query_map([], |row| row.get(0)).expect("query");
    rows.collect::<Result<_, _>>().expect("read the numbers")
}

/// The numbers in the branches that a node's data directory keeps.
fn parked_on(node: &Node) -> BTreeSet<u32> {
    let dirs = std::fs::read_dir(node.data().join("parked")).into_iter().flatten().flatten();
    let files = dirs.map(|dir| dir.path().join("database")).filter(|file| file.exists());
    files.flat_map(|file| numbers(&file)).collect()
}

fn interleaving(seed: u64, tally: &mut Tally) {
    let mut random = StdRng::seed_from_u64(seed);
    let durability = if seed.is_multiple_of(2) { Durability::Archive } else { Durability::Async };
    let mut pair = Pair::with(seed, durability);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pair.start(0);
        for _ in 0..STEPS {
            let at = random.random_range(0..2);
            match random.random_range(0..20) {
                0..4 => pair.start(at),
                4 | 5 => pair.stop(at),
                6 | 7 => pair.kill(at),
                8 | 9 => pair.freeze(at),
                10 | 11 => pair.thaw(at),
                12 => pair.wipe(at),
                13 => std::thread::sleep(Duration::from_millis(random.random_range(0..4000))),
                _ => pair.write(random.random_range(1..20)),
            }
        }
        pair.settle(&mut random);
        pair.check(tally);
    }));
    if let Err(panic) = result {
        eprintln!("LITEFS_SEED={seed} ({durability:?}): {:?}", pair.said);
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn whatever_happens_to_two_nodes_every_acknowledged_transaction_is_accounted_for() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("LITEFS_SEED").unwrap_or_else(|| rand::random_range(1..1_000_000));
    let wanted = number("LITEFS_INTERLEAVINGS");
    println!("LITEFS_SEED={first}");
    let begin = Instant::now();
    let mut tally = Tally::default();
    for seed in first.. {
        match wanted {
            Some(count) if seed - first >= count => break,
            None if begin.elapsed() > BUDGET => break,
            _ => interleaving(seed, &mut tally),
        }
    }
    println!("{tally:?} in {:?}", begin.elapsed());
    assert!(tally.acknowledged > 0);
}

#[test]
fn a_node_that_is_frozen_under_load_parks_what_it_acknowledged_and_rejoins() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let mut pair = Pair::new(0);
    // The first commit is put at once, and what comes later not before the freeze; nor
    // has the second node it from a stream.
    pair.nodes[0].settings.sync_interval = "3600s";
    pair.nodes.iter_mut().for_each(|node| node.set_advertised(false));
    pair.start(0);
    pair.becomes_primary(0);
    pair.start(1);
    // Many small groups, so that the load goes on before, during and after the freeze.
    let mut worker = Worker::start(Sqlite::System);
    let first = ["PRAGMA journal_mode=WAL", "CREATE TABLE t(n INTEGER PRIMARY KEY)"];
    worker
        .open_with(&pair.nodes[0].file("app.db"), Duration::from_secs(5), &first)
        .expect("alive")
        .expect("open");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let load = std::thread::spawn(move || {
        let mut acknowledged = BTreeSet::new();
        for n in 0.. {
            if stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                break;
            }
            let numbers: Vec<u32> = (n * 10..n * 10 + 10).collect();
            let groups: Vec<Vec<String>> =
                numbers.iter().map(|number| vec![format!("INSERT INTO t VALUES({number})")]).collect();
            let Ok(outcomes) = worker.groups(&groups) else { break };
            let mut refused = false;
            for (number, outcome) in numbers.into_iter().zip(outcomes) {
                refused |= outcome.is_err();
                if outcome.is_ok() {
                    acknowledged.insert(number);
                }
            }
            count.store(acknowledged.len(), Ordering::Relaxed);
            if refused {
                break;
            }
        }
        acknowledged
    });
    wait_for("the load is on", || (written.load(Ordering::Relaxed) >= 50).then_some(()));
    pair.freeze(0);
    let frozen = Instant::now();
    pair.becomes_primary(1);
    pair.next = 10_000_000;
    let late: Vec<u32> = (10_000_000..10_000_010).collect();
    let written = insert(&pair.nodes[1], &late);
    assert_eq!(written, late);
    pair.acknowledged[1].extend(written);
    std::thread::sleep(Duration::from_secs(6).saturating_sub(frozen.elapsed()));
    pair.thaw(0);
    wait_for("the first node knows that it is not primary", || {
        (!pair.nodes[0].is_primary() && pair.nodes[1].is_primary()).then_some(())
    });
    drop(stop);
    pair.acknowledged[0] = load.join().expect("the load");
    let mut tally = Tally::default();
    pair.settle(&mut StdRng::seed_from_u64(0));
    pair.check(&mut tally);
    println!("{tally:?}");
    let log = pair.nodes[0].log();
    assert!(tally.parked >= 20 && log.contains("branch lost"), "what lost is parked and named: {log}");
}

/// An application on a node that waits tries to write numbers until it can: when it
/// could, and which.
fn first_write(worker: &mut Worker, from: u32) -> (Instant, u32) {
    let begin = Instant::now();
    let mut number = from;
    loop {
        let insert = vec![vec![format!("INSERT INTO t VALUES({number})")]];
        let outcomes = worker.groups(&insert).expect("alive");
        if outcomes.iter().all(Result::is_ok) {
            return (Instant::now(), number);
        }
        assert!(begin.elapsed() < PATIENCE, "it cannot write: {outcomes:?}");
        // The pace of an application that tries again.
        std::thread::park_timeout(Duration::from_millis(5));
        number += 1;
    }
}

/// The first node ends, the second writes: how long after the signal, and after the end.
fn succession(lease: &'static str, advertised: bool, signal: Signal, seed: u64) -> [Duration; 2] {
    let mut pair = Pair::new(seed);
    // As in a region: 20 ms a request.
    let url = pair.nodes[0].archive_url();
    let line = url.contains("endpoint=").then(|| Line::to(&Line::end_of(&url)));
    for node in &mut pair.nodes {
        node.settings.lease = lease;
        node.set_advertised(advertised);
        if let Some(line) = &line {
            line.latency(Duration::from_millis(20));
            node.set_archive_url(&line.url(&url));
        }
    }
    pair.start(0);
    pair.becomes_primary(0);
    pair.write(5);
    pair.nodes[0].wait_archived(&["app.db"]);
    pair.start(1);
    pair.nodes[1].wait_role("replica");
    let mut worker = Worker::start(Sqlite::System);
    wait_for("the second node has the database", || {
        let file = pair.nodes[1].file("app.db");
        worker.open_with(&file, Duration::ZERO, &["SELECT n FROM t"]).expect("alive").ok()
    });
    if advertised {
        wait_for("the second node follows the first", || {
            pair.nodes[1].log().contains("following the primary").then_some(())
        });
    }
    let told = Instant::now();
    pair.nodes[0].signal(signal);
    let (ended, (wrote, number)) = std::thread::scope(|scope| {
        let writes = scope.spawn(|| first_write(&mut worker, 1000));
        pair.nodes[0].wait_end();
        let ended = Instant::now();
        (ended, writes.join().expect("it writes"))
    });
    pair.states[0] = State::Down;
    pair.acknowledged[1].insert(number);
    pair.stop(1);
    pair.check(&mut Tally::default());
    [wrote - told, wrote.saturating_duration_since(ended)]
}

#[test]
fn a_second_node_writes_soon_after_the_first_has_stopped_or_died() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const TEN: &str = "type = \"storage\"\nttl = \"10s\"";
    let cases = [
        ("stopped, lease.ttl 10 s, with a stream", TEN, true, Signal::TERM),
        ("stopped, lease.ttl 10 s, without one", TEN, false, Signal::TERM),
        ("killed, lease.ttl 2 s", LEASE, true, Signal::KILL),
    ];
    for (n, (what, lease, advertised, signal)) in cases.into_iter().enumerate() {
        let [told, ended] = succession(lease, advertised, signal, 10 + n as u64);
        println!("{what}: the second node writes {told:.2?} after the signal, {ended:.2?} after the end");
        // One second, and after a kill the time to live; the rest is for a busy machine.
        assert!(ended < Duration::from_secs(if signal == Signal::KILL { 20 } else { 10 }), "{ended:?}");
    }
}

#[test]
fn two_killed_nodes_go_on_in_whatever_order_they_come_back() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    for first in 0..2 {
        let mut pair = Pair::new(3 + first as u64);
        pair.start(0);
        pair.becomes_primary(0);
        pair.start(1);
        pair.write(20);
        pair.kill(0);
        pair.kill(1);
        pair.start(first);
        pair.becomes_primary(first);
        pair.write(5);
        pair.start(1 - first);
        pair.settle(&mut StdRng::seed_from_u64(first as u64));
        let mut tally = Tally::default();
        pair.check(&mut tally);
        assert_eq!((tally.acknowledged, tally.wiped), (25, 0));
    }
}

#[test]
fn with_promote_an_empty_node_never_wins_over_one_that_redeploys() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const ROUNDS: u32 = 20;
    let seed = rand::random();
    println!("LITEFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut pair = Pair::new(5);
    for node in &mut pair.nodes {
        node.settings.lease = PROMOTE;
    }
    let mut expected = BTreeSet::new();
    pair.start(0);
    for round in 0..ROUNDS {
        pair.becomes_primary(0);
        if round > 0 {
            assert_eq!(numbers_in(&pair.nodes[0]), expected, "round {round}");
        }
        pair.write(3);
        expected.extend(pair.acknowledged.iter().flatten());
        pair.wipe(1);
        // At any moment of the redeployment: before it, in the middle, after it.
        let pause = Duration::from_millis(random.random_range(0..1500));
        if round % 2 == 0 {
            pair.start(1);
            std::thread::sleep(pause);
            pair.stop(0);
        } else {
            pair.nodes[0].signal(Signal::TERM);
            std::thread::sleep(pause / 4);
            pair.start(1);
            assert_eq!(pair.nodes[0].wait_end().code(), Some(0));
            pair.states[0] = State::Down;
        }
        pair.start(0);
        // Whichever asked last; and the first, once it is alone.
        let at = wait_for("one of them is primary", || pair.primary());
        assert_eq!(numbers_in(&pair.nodes[at]), expected, "round {round}");
        pair.stop(1);
    }
    pair.becomes_primary(0);
    pair.stop(0);
    pair.check(&mut Tally::default());
}

/// The numbers as another process reads them in the mount.
fn numbers_in(node: &Node) -> BTreeSet<u32> {
    let rows = support::drivers::Driver::Program.query(&node.file("app.db"), "SELECT n FROM t");
    rows.lines().map(|line| line.parse().expect("a number")).collect()
}
