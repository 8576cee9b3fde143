//! Replication lag on one machine: from the return of COMMIT on the primary until a
//! reader on the replica's mount has the row. Two nodes as processes, two mounts, a
//! stream over the loopback. Prints a table for docs/PERFORMANCE.md. Run as
//! `cargo bench --bench replication`; `LITEFS_BENCH_SECONDS` for each row (10).

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use support::{Node, Scratch, Settings, wait_for};

/// One row of the table.
struct Row {
    name: &'static str,
    mode: &'static str,
    /// Commits a second.
    rate: u64,
    /// Bytes in a row.
    size: u32,
}

const ROWS: [Row; 4] = [
    Row { name: "WAL, 200 commits/s", mode: "wal", rate: 200, size: 100 },
    Row { name: "WAL, 200 commits/s of 64 KiB", mode: "wal", rate: 200, size: 65536 },
    Row { name: "WAL, 1000 commits/s", mode: "wal", rate: 1000, size: 100 },
    Row { name: "DELETE, 200 commits/s", mode: "delete", rate: 200, size: 100 },
];

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("open a database");
    db.busy_timeout(Duration::from_secs(60)).expect("set the timeout");
    db
}

fn node(scratch: &Scratch, name: &str) -> Node {
    let settings = Settings {
        lease: "type = \"storage\"\nttl = \"10s\"",
        sync_interval: "1s",
        log: "info",
        ..Settings::default()
    };
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&scratch.join("archive")).advertised()
}

/// The lags of one row in microseconds, sorted.
fn measure(row: &Row, primary: &Node, replica: &Node, number: usize, span: Duration) -> Vec<u64> {
    let name = format!("{number}.db");
    let writer = open(&primary.file(&name));
    writer
        .execute_batch(&format!(
            "PRAGMA journal_mode={}; PRAGMA synchronous=NORMAL; CREATE TABLE t(n INTEGER PRIMARY KEY, v BLOB)",
            row.mode
        ))
        .expect("prepare");
    wait_for("the database is on the replica", || {
        let there = replica.file(&name).exists().then(|| Connection::open(replica.file(&name)))?.ok()?;
        there.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).ok()
    });
    let count = row.rate * span.as_secs();
    let committed: Vec<AtomicU64> = (0..=count).map(|_| AtomicU64::new(0)).collect();
    let (start, done) = (Instant::now(), AtomicBool::new(false));
    let micros = || start.elapsed().as_micros() as u64;
    std::thread::scope(|scope| {
        let (committed, done) = (&committed, &done);
        let reader = scope.spawn(move || {
            let db = open(&replica.file(&name));
            let mut last = db.prepare("SELECT max(n) FROM t").expect("prepare");
            let (mut seen, mut lags) = (0_i64, Vec::new());
            while seen < count as i64 {
                let now: i64 =
                    last.query_row([], |row| Ok(row.get::<_, Option<i64>>(0)?.unwrap_or(0))).expect("read");
                let at = micros();
                for n in seen + 1..=now {
                    // A row can be here before COMMIT has returned there.
                    let since = committed[n as usize].load(Ordering::Acquire);
                    lags.push(if since == 0 { 0 } else { at.saturating_sub(since) });
                }
                seen = now;
                assert!(
                    !done.load(Ordering::Acquire) || start.elapsed() < span * 10,
                    "the replica stays behind"
                );
                std::thread::sleep(Duration::from_micros(200));
            }
            lags
        });
        let mut insert = writer.prepare("INSERT INTO t VALUES(?1, zeroblob(?2))").expect("prepare");
        for n in 1..=count {
            let due = Duration::from_micros(n * 1_000_000 / row.rate);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            insert.execute((n as i64, row.size)).expect("commit");
            committed[n as usize].store(micros(), Ordering::Release);
        }
        done.store(true, Ordering::Release);
        let mut lags = reader.join().expect("a reader");
        lags.sort_unstable();
        lags
    })
}

fn main() {
    if !support::can_mount() {
        return;
    }
    let seconds = std::env::var("LITEFS_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let scratch = Scratch::new("bench-replication");
    let (mut primary, mut replica) = (node(&scratch, "primary"), node(&scratch, "replica"));
    primary.start();
    primary.wait_primary().expect("the primary serves");
    replica.start();
    replica.wait_role("replica");
    println!("| commit → readable on the replica | p50 ms | p99 ms | most ms | commits |");
    println!("|---|---|---|---|---|");
    for (number, row) in ROWS.iter().enumerate() {
        let lags = measure(row, &primary, &replica, number, Duration::from_secs(seconds));
        let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        println!("| {} | {:.2} | {:.2} | {:.2} | {} |", row.name, at(0.5), at(0.99), at(1.0), lags.len());
    }
    replica.stop();
    primary.stop();
}
