//! The workload: money that is moved among the accounts of several databases, straight in
//! a mount or by an application behind any node's proxy, and what must be so afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rusqlite::Connection;

use crate::cluster::Cluster;
use crate::support::worker::{Sqlite, Worker};
use crate::support::{Node, Scratch};

/// The databases, and their journal modes.
pub const BANKS: [(&str, &str); 3] =
    [("bank0.db", "wal"), ("bank1.db", "delete"), ("branch/bank2.db", "wal")];
const ACCOUNTS: u32 = 10;
const OPENING: u32 = 1000;

/// How long a client waits for an answer before it asks another node.
const ANSWER: Duration = Duration::from_secs(3);

/// The transfers that were acknowledged, by bank.
pub type Acknowledged = BTreeMap<usize, BTreeSet<u32>>;

/// What the writers share.
pub struct Desk<'a> {
    pub cluster: &'a Mutex<Cluster>,
    pub next: &'a AtomicU32,
    pub stop: &'a AtomicBool,
}

/// One transfer.
struct Transfer {
    n: u32,
    from: u32,
    to: u32,
    amount: u32,
}

impl Transfer {
    fn random(random: &mut StdRng, next: &AtomicU32) -> Transfer {
        Transfer {
            n: next.fetch_add(1, Ordering::Relaxed),
            from: random.random_range(0..ACCOUNTS),
            to: random.random_range(0..ACCOUNTS),
            amount: random.random_range(1..50),
        }
    }

    fn sql(&self) -> Vec<String> {
        let Transfer { n, from, to, amount } = self;
        vec![
            "BEGIN IMMEDIATE".to_owned(),
            format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}"),
            format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"),
            format!("INSERT INTO ledger VALUES({n})"),
            "COMMIT".to_owned(),
        ]
    }
}

/// Makes the databases.
pub fn open(node: &Node) {
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

/// Moves money in the mount of the node that is the primary, until told to stop.
pub fn in_the_mount(desk: &Desk<'_>, random: &mut StdRng) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    while !desk.stop.load(Ordering::Acquire) {
        let bank = random.random_range(0..BANKS.len());
        let Some(file) = Cluster::primary(desk.cluster, |node| node.file(BANKS[bank].0)) else {
            std::thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        let transfers: Vec<Transfer> =
            (0..random.random_range(1..8)).map(|_| Transfer::random(random, desk.next)).collect();
        let groups: Vec<Vec<String>> = transfers.iter().map(Transfer::sql).collect();
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
        let done = transfers.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
        acknowledged.entry(bank).or_default().extend(done.map(|(transfer, _)| transfer.n));
    }
    acknowledged
}

/// Moves money through the proxies of all nodes, whatever they are, until told to stop.
pub fn through_proxies(desk: &Desk<'_>, random: &mut StdRng) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    while !desk.stop.load(Ordering::Acquire) {
        let proxy = desk.cluster.lock().expect("the cluster").any_proxy(random);
        let Some(proxy) = proxy else {
            std::thread::park_timeout(Duration::from_millis(20));
            continue;
        };
        let bank = random.random_range(0..BANKS.len());
        for _ in 0..random.random_range(1..8) {
            let transfer = Transfer::random(random, desk.next);
            match post(proxy, BANKS[bank].0, &transfer) {
                Some(200) => drop(acknowledged.entry(bank).or_default().insert(transfer.n)),
                // The sum was not there, or the node cannot now.
                Some(503) => {}
                _ => break,
            }
        }
    }
    acknowledged
}

/// The status of the answer, if there is one in time.
fn post(proxy: SocketAddr, bank: &str, transfer: &Transfer) -> Option<u16> {
    let Transfer { n, from, to, amount } = transfer;
    let mut stream = TcpStream::connect_timeout(&proxy, ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    stream.set_write_timeout(Some(ANSWER)).ok()?;
    write!(
        stream,
        "POST /transfer?bank={bank}&n={n}&from={from}&to={to}&amount={amount} HTTP/1.1\r\n\
         Host: bank\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    .ok()?;
    let mut reply = Vec::new();
    // Not an answer that was cut off.
    stream.read_to_end(&mut reply).ok()?;
    let reply = String::from_utf8_lossy(&reply);
    reply.contains("\r\n\r\n").then(|| reply.split(' ').nth(1)?.parse().ok())?
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

/// No money was made or lost, all nodes have the same bytes, and every acknowledged
/// transfer is there, or parked; only there, if `archived`.
pub fn check(nodes: &[Node], scratch: &Scratch, acknowledged: &Acknowledged, archived: bool) {
    for (at, (bank, _)) in BANKS.iter().enumerate() {
        let mut images = Vec::new();
        let (mut found, mut aside) = (BTreeSet::new(), BTreeSet::new());
        for node in nodes {
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
        let accounted = |n: &&u32| found.contains(n) || !archived && aside.contains(n);
        let nowhere: Vec<_> = wanted.iter().filter(|n| !accounted(n)).collect();
        assert!(nowhere.is_empty(), "{bank}: acknowledged, and nowhere: {nowhere:?}");
        let only_parked = wanted.iter().filter(|n| !found.contains(n)).count();
        println!("{bank}: {} acknowledged, {only_parked} of them parked", wanted.len());
    }
}
