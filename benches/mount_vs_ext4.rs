//! The mount against plain ext4, interleaved in one run: ratios, not rates, for the
//! machine has other work. Prints a table for docs/PERFORMANCE.md. Run as
//! `cargo bench --bench mount_vs_ext4 [-- PART…]`: only rows whose names have such a
//! part. `LITEFS_BENCH_ROUNDS` rounds (5); `LITEFS_BENCH_WITHOUT=0` leaves out the mount
//! without passthrough; `LITEFS_BENCH_OTHER` is a program that runs in place of litefs
//! (it gets litefs and its arguments), for another build beside this one.

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

/// Makes a database, unless another row has.
fn fill(path: &Path, mode: &str, rows: i64) {
    if path.exists() {
        return;
    }
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
    // Those that leave much to upload come last: the uploads go on beside what follows.
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
            prepare: |dir| fill(&dir.join("read.db"), "delete", ROWS),
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
            prepare: |dir| fill(&dir.join("read-wal.db"), "wal", ROWS),
            work: |dir| (0..5).map(|_| scan(&dir.join("read-wal.db"))).sum(),
            written: unwritten,
        },
        Row {
            name: "open, read, close 100 databases",
            goal: 0.3,
            prepare: |dir| (0..100).for_each(|n| fill(&dir.join(format!("small-{n}.db")), "delete", 20)),
            work: |dir| (0..10).map(|_| visit(dir)).sum(),
            written: unwritten,
        },
        Row {
            name: "commits, DELETE FULL",
            goal: 0.7,
            prepare: nothing,
            work: |dir| commits(&dir.join("delete-full.db"), "delete", "FULL", 300),
            written: || vec!["delete-full.db".to_owned()],
        },
        Row {
            name: "commits, DELETE OFF",
            goal: 0.3,
            prepare: nothing,
            work: |dir| commits(&dir.join("delete-off.db"), "delete", "OFF", 4000),
            written: || vec!["delete-off.db".to_owned()],
        },
        Row {
            name: "commits, WAL FULL, 1 writer",
            goal: 0.0,
            prepare: nothing,
            work: |dir| commits(&dir.join("wal-writer.db"), "wal", "FULL", 600),
            written: wal_writer,
        },
        Row {
            name: "commits, WAL FULL, 16 writers",
            goal: 0.5,
            prepare: nothing,
            work: |dir| sixteen(dir, "FULL", 200),
            written: sixteen_names,
        },
        Row {
            name: "commits, WAL NORMAL, 1 writer",
            goal: 0.6,
            prepare: nothing,
            work: |dir| commits(&dir.join("wal-writer.db"), "wal", "NORMAL", 10_000),
            written: wal_writer,
        },
        Row {
            name: "commits, WAL NORMAL, 16 writers",
            goal: 0.6,
            prepare: nothing,
            work: |dir| sixteen(dir, "NORMAL", 3000),
            written: sixteen_names,
        },
    ]
}

/// A node that is measured.
struct Side {
    node: Node,
    dir: PathBuf,
    /// Its rates, as ratios to ext4's in the same round.
    ratios: Vec<f64>,
    /// What its process spent, in microseconds of CPU an operation.
    spent: Vec<f64>,
}

impl Side {
    fn start(base: &Path, passthrough: bool, wrapper: Option<&str>) -> Side {
        let wrapper = wrapper.map(str::to_owned).into_iter().collect();
        let settings =
            Settings { passthrough, sync_interval: "1s", log: "info", wrapper, ..Settings::default() };
        let mut node = Node::new(base, settings);
        node.start();
        let dir = node.mount();
        Side { node, dir, ratios: Vec::new(), spent: Vec::new() }
    }

    fn round(&mut self, row: &Row, plain: &Path) -> f64 {
        let (base, _) = rate(row, plain, false);
        let before = cpu(self.node.pid());
        let (rate, count) = rate(row, &self.dir, true);
        self.spent.push((cpu(self.node.pid()) - before) * 1e6 / count as f64);
        self.ratios.push(rate / base);
        base
    }

    fn range(&self) -> String {
        let low = self.ratios.iter().copied().fold(f64::MAX, f64::min);
        let high = self.ratios.iter().copied().fold(0.0, f64::max);
        format!("{low:.2}–{high:.2}")
    }
}

/// Operations a second of one round, and how many they were, the drain of the capture
/// included: `-pos` is read, which answers when everything committed is in the change
/// log.
fn rate(row: &Row, dir: &Path, mounted: bool) -> (f64, u64) {
    let start = Instant::now();
    let count = (row.work)(dir);
    if mounted {
        for name in (row.written)() {
            std::fs::read(dir.join(format!("{name}-pos"))).expect("read the position");
        }
    }
    (count as f64 / start.elapsed().as_secs_f64(), count)
}

/// The seconds of CPU that a process has used.
fn cpu(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    let fields = text.rsplit(')').next().expect("fields after the name");
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    let rounds = variable("LITEFS_BENCH_ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(5);
    if !support::can_mount() {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let scratch = Scratch::new("bench");
    let plain = scratch.join("plain");
    std::fs::create_dir_all(&plain).expect("create the plain directory");
    let mut sides = vec![Side::start(&scratch.join("with"), true, None)];
    if variable("LITEFS_BENCH_WITHOUT").as_deref() != Some("0") {
        sides.push(Side::start(&scratch.join("without"), false, None));
    }
    if let Some(other) = variable("LITEFS_BENCH_OTHER") {
        sides.push(Side::start(&scratch.join("other"), true, Some(&other)));
    }
    println!("| work | goal | load | ext4, 1/s | mount / ext4, range, CPU µs | without passthrough … |");
    println!("|---|---|---|---|---|---|");
    for row in table() {
        let dirs: Vec<PathBuf> =
            [plain.clone()].into_iter().chain(sides.iter().map(|side| side.dir.clone())).collect();
        if !wanted.is_empty() && !wanted.iter().any(|part| row.name.contains(part.as_str())) {
            continue;
        }
        for dir in &dirs {
            (row.prepare)(dir);
            // Once outside the measurement: caches are warm, files are there.
            (row.work)(dir);
        }
        let mut base = Vec::new();
        for side in &mut sides {
            (side.ratios, side.spent) = (Vec::new(), Vec::new());
        }
        let load = load();
        for _ in 1..=rounds {
            base.extend(sides.iter_mut().map(|side| side.round(&row, &plain)));
        }
        let reached = |side: &Side| if median(&side.ratios) >= row.goal { "" } else { " (missed)" };
        let goal = if row.goal > 0.0 {
            format!("≥ {:.1}{}", row.goal, reached(&sides[0]))
        } else {
            "–".to_owned()
        };
        let cells: Vec<String> = sides
            .iter()
            .map(|side| {
                format!("**{:.2}**, {}, {:.1}", median(&side.ratios), side.range(), median(&side.spent))
            })
            .collect();
        println!("| {} | {goal} | {load} | {:.0} | {} |", row.name, median(&base), cells.join(" | "));
    }
    // What the archive lacks is not waited for.
    for side in &mut sides {
        side.node.kill();
    }
}
