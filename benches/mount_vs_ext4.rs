//! The mount against plain ext4, interleaved in one run: ratios, not rates, for the
//! machine has other work. `LITEFS_BENCH_ROUNDS` rounds (5); prints a table for
//! docs/PERFORMANCE.md. Run as `cargo bench --bench mount_vs_ext4`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use support::{Node, Scratch, Settings};

/// One row of the table: prepares a directory once, then does the same work in it
/// round after round and gives how many operations that were.
struct Row {
    name: &'static str,
    goal: f64,
    prepare: fn(&Path),
    work: fn(&Path) -> u64,
    /// The databases whose capture is waited for within the measured time.
    written: fn() -> Vec<String>,
}

const ROWS: i64 = 200_000;

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("open a database");
    db.busy_timeout(Duration::from_secs(60)).expect("set the timeout");
    db
}

fn fill(path: &Path, mode: &str, rows: i64) {
    let db = open(path);
    db.execute_batch(&format!(
        "PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF;
         CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t SELECT i, i * 7919 % 1000003, hex(randomblob(100)) FROM n;"
    ))
    .expect("fill a database");
    if mode == "wal" {
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoint");
    }
}

fn points(path: &Path, count: u64) -> u64 {
    let db = open(path);
    let mut select = db.prepare("SELECT length(v) FROM t WHERE id = ?").expect("prepare");
    let mut id = 1;
    for _ in 0..count {
        id = (id * 48271) % 2_147_483_647;
        let _: i64 = select.query_row([id % ROWS + 1], |row| row.get(0)).expect("read a row");
    }
    count
}

fn scan(path: &Path) -> u64 {
    let db = open(path);
    let _: i64 = db.query_row("SELECT sum(length(v)) FROM t", [], |row| row.get(0)).expect("scan");
    1
}

fn commits(path: &Path, mode: &str, synchronous: &str, count: u64) -> u64 {
    let db = open(path);
    db.execute_batch(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous};"))
        .expect("set the modes");
    db.execute_batch("CREATE TABLE IF NOT EXISTS c(id INTEGER PRIMARY KEY, v TEXT)").expect("create");
    let mut insert = db.prepare("INSERT INTO c(v) VALUES(?)").expect("prepare");
    for _ in 0..count {
        insert
            .execute(["one row of a hundred bytes or so, as applications have them, more or less often"])
            .expect("commit");
    }
    count
}

fn sixteen(dir: &Path, synchronous: &'static str, count: u64) -> u64 {
    std::thread::scope(|scope| {
        for n in 0..16 {
            let path = dir.join(format!("writer-{n}.db"));
            scope.spawn(move || commits(&path, "wal", synchronous, count));
        }
    });
    16 * count
}

fn visit(dir: &Path) -> u64 {
    for n in 0..100 {
        let db = open(&dir.join(format!("small-{n}.db")));
        let _: i64 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("read");
    }
    100
}

fn sixteen_names() -> Vec<String> {
    (0..16).map(|n| format!("writer-{n}.db")).collect()
}

fn table() -> Vec<Row> {
    let nothing: fn(&Path) = |_| {};
    let unwritten: fn() -> Vec<String> = Vec::new;
    let wal_writer: fn() -> Vec<String> = || vec!["wal-writer.db".to_owned()];
    vec![
        Row {
            name: "point reads, rollback mode",
            goal: 0.9,
            prepare: |dir| fill(&dir.join("read.db"), "delete", ROWS),
            work: |dir| points(&dir.join("read.db"), 60_000),
            written: unwritten,
        },
        Row {
            name: "scan, rollback mode",
            goal: 0.9,
            prepare: nothing,
            work: |dir| (0..5).map(|_| scan(&dir.join("read.db"))).sum(),
            written: unwritten,
        },
        Row {
            name: "point reads, WAL",
            goal: 0.9,
            prepare: |dir| fill(&dir.join("read-wal.db"), "wal", ROWS),
            work: |dir| points(&dir.join("read-wal.db"), 60_000),
            written: unwritten,
        },
        Row {
            name: "scan, WAL",
            goal: 0.9,
            prepare: nothing,
            work: |dir| (0..5).map(|_| scan(&dir.join("read-wal.db"))).sum(),
            written: unwritten,
        },
        Row {
            name: "commits, WAL NORMAL, 1 writer",
            goal: 0.6,
            prepare: nothing,
            work: |dir| commits(&dir.join("wal-writer.db"), "wal", "NORMAL", 10_000),
            written: wal_writer,
        },
        Row {
            name: "commits, WAL FULL, 1 writer",
            goal: 0.0,
            prepare: nothing,
            work: |dir| commits(&dir.join("wal-writer.db"), "wal", "FULL", 600),
            written: wal_writer,
        },
        Row {
            name: "commits, WAL NORMAL, 16 writers",
            goal: 0.6,
            prepare: nothing,
            work: |dir| sixteen(dir, "NORMAL", 3000),
            written: sixteen_names,
        },
        Row {
            name: "commits, WAL FULL, 16 writers",
            goal: 0.5,
            prepare: nothing,
            work: |dir| sixteen(dir, "FULL", 200),
            written: sixteen_names,
        },
        Row {
            name: "commits, DELETE OFF",
            goal: 0.3,
            prepare: nothing,
            work: |dir| commits(&dir.join("delete-off.db"), "delete", "OFF", 4000),
            written: || vec!["delete-off.db".to_owned()],
        },
        Row {
            name: "commits, DELETE FULL",
            goal: 0.7,
            prepare: nothing,
            work: |dir| commits(&dir.join("delete-full.db"), "delete", "FULL", 300),
            written: || vec!["delete-full.db".to_owned()],
        },
        Row {
            name: "open, read, close 100 databases",
            goal: 0.3,
            prepare: |dir| (0..100).for_each(|n| fill(&dir.join(format!("small-{n}.db")), "delete", 20)),
            work: |dir| (0..10).map(|_| visit(dir)).sum(),
            written: unwritten,
        },
    ]
}

/// Operations a second of one round, the drain of the capture included: `-pos` is
/// read, which answers when everything committed is in the change log.
fn rate(row: &Row, dir: &Path, mounted: bool) -> f64 {
    let start = Instant::now();
    let count = (row.work)(dir);
    if mounted {
        for name in (row.written)() {
            std::fs::read(dir.join(format!("{name}-pos"))).expect("read the position");
        }
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::var("LITEFS_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    if !support::can_mount() {
        return;
    }
    let scratch = Scratch::new("bench");
    let plain = scratch.join("plain");
    std::fs::create_dir_all(&plain).expect("create the plain directory");
    let start = |name: &str, passthrough: bool| -> (Node, PathBuf) {
        let mut node = Node::new(
            &scratch.join(name),
            Settings { passthrough, sync_interval: "1s", log: "info", ..Settings::default() },
        );
        node.start();
        let dir = node.mount();
        (node, dir)
    };
    let (mut with, with_dir) = start("with", true);
    let (mut without, without_dir) = start("without", false);
    println!("| work | goal | ext4, 1/s | mount / ext4 | range | without passthrough | range |");
    println!("|---|---|---|---|---|---|---|");
    for row in table() {
        for dir in [&plain, &with_dir, &without_dir] {
            (row.prepare)(dir);
            // Once outside the measurement: caches are warm, files are there.
            (row.work)(dir);
        }
        let (mut base, mut on, mut off) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 1..=rounds {
            let ext4 = rate(&row, &plain, false);
            on.push(rate(&row, &with_dir, true) / ext4);
            let again = rate(&row, &plain, false);
            off.push(rate(&row, &without_dir, true) / again);
            base.push(ext4);
        }
        let range = |values: &[f64]| {
            let low = values.iter().copied().fold(f64::MAX, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            format!("{low:.2}–{high:.2}")
        };
        let (on_range, off_range) = (range(&on), range(&off));
        println!(
            "| {} | {} | {:.0} | **{:.2}** | {on_range} | {:.2} | {off_range} |",
            row.name,
            if row.goal > 0.0 { format!("≥ {:.1}", row.goal) } else { "–".to_owned() },
            median(base),
            median(on),
            median(off),
        );
    }
    with.stop();
    without.stop();
}
