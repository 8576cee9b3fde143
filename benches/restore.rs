//! Restoring, restarting, idling: how fast and how much of the machine. Prints a table
//! for docs/PERFORMANCE.md. Run as `cargo bench --bench restore`; `LITEFS_BENCH_MIB` is
//! the size of the restored database (1024), `LITEFS_BENCH_SPARSE_GIB` that of the one
//! that a restart must not read (10), `LITEFS_BENCH_DATABASES` how many idle (500).

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use support::{Node, Scratch, Settings, wait_for};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn row(what: &str, goal: &str, measured: &str) {
    println!("| {what} | {goal} | {measured} |");
}

/// A field of /proc/PID/<file>, such as `VmHWM:` of `status` (KiB).
fn proc_field(pid: u32, file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time of a process so far, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    let fields = text.rsplit(')').next().expect("fields after the name");
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Rows as applications have them: words, numbers, ids that do not compress.
fn fill(path: &Path, mib: u64) {
    let db = Connection::open(path).expect("open a database");
    db.execute_batch(&format!(
        "PRAGMA journal_mode=wal; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=20000;
         CREATE TABLE events(id INTEGER PRIMARY KEY, at TEXT, who TEXT, what TEXT, n INT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO events SELECT i, datetime(1700000000 + i * 37, 'unixepoch'), hex(randomblob(16)),
           'user ' || i % 977 || ' opened document ' || i * 7919 % 65537 || ' and saved it as draft', i FROM n;",
        mib * 15_450
    ))
    .expect("fill a database");
}

fn restore_speed(scratch: &Scratch, mib: u64) {
    let mut node = Node::new(
        &scratch.join("restore"),
        Settings { sync_interval: "1s", log: "info", ..Settings::default() },
    );
    node.start();
    fill(&node.file("big.db"), mib);
    let start = Instant::now();
    node.wait_archived(&["big.db"]);
    let archived = start.elapsed();
    node.stop();
    for attempt in 1..=3 {
        let file = scratch.join("restored.db");
        let mut command = support::process::litefs();
        command.args(["restore", "--force", "--storage", &node.archive_url(), "--name", "big.db", "-o"]);
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let start = Instant::now();
        let mut child = command.spawn().expect("start litefs restore");
        let mut most = 0;
        let status = loop {
            most = most.max(proc_field(child.id(), "status", "VmHWM:").unwrap_or(0));
            match child.try_wait().expect("wait for litefs restore") {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let took = start.elapsed().as_secs_f64();
        assert!(status.success(), "restore failed: {status:?}");
        let size = std::fs::metadata(&file).expect("the restored file").len();
        row(
            &format!("litefs restore of {} MiB from file://, run {attempt}", size >> 20),
            "≥ 400 MB/s, flat memory",
            &format!("{:.0} MB/s, at most {} MiB resident", size as f64 / 1e6 / took, most >> 10),
        );
    }
    node.wipe_data();
    let start = Instant::now();
    node.start();
    row(
        "cold start with that database",
        "–",
        &format!("{:.2} s until it serves", start.elapsed().as_secs_f64()),
    );
    row("its archive, after the last commit", "–", &format!("{:.1} s behind", archived.as_secs_f64()));
    node.stop();
}

/// A database of many pages of which hardly any is written: the freelist's trunk chain
/// is not there, so only the header says how big it is.
fn sparse_restart(scratch: &Scratch, gib: u64) {
    let mut node = Node::new(
        &scratch.join("sparse"),
        Settings { sync_interval: "1s", log: "info", ..Settings::default() },
    );
    node.start();
    let db = Connection::open(node.file("sparse.db")).expect("open a database");
    db.execute_batch("PRAGMA page_size=65536; CREATE TABLE t(x); INSERT INTO t VALUES(1);").expect("create");
    drop(db);
    node.wait_archived(&["sparse.db"]);
    node.stop();
    // Grown behind the node's back, pages of zeros (that a hole gives): then the node
    // is told by an ordinary import of the file.
    let source = scratch.join("sparse-source.db");
    let db = Connection::open(&source).expect("open a database");
    db.execute_batch("PRAGMA page_size=65536; CREATE TABLE t(x); INSERT INTO t VALUES(1);").expect("create");
    drop(db);
    let pages = u32::try_from((gib << 30) / 65536).expect("so many pages");
    let file = std::fs::OpenOptions::new().write(true).open(&source).expect("open the file");
    file.set_len(u64::from(pages) * 65536).expect("make it sparse");
    file.write_all_at(&pages.to_be_bytes(), 28).expect("write the page count");
    drop(file);
    node.start();
    let mut command = support::process::litefs();
    command.args(["import", "--url", &node.url(), "--name", "sparse.db"]).arg(&source);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("run litefs import");
    assert!(output.status.success(), "import: {}", String::from_utf8_lossy(&output.stderr));
    row(
        &format!("import of a sparse {gib} GiB database"),
        "–",
        &format!("{:.1} s", start.elapsed().as_secs_f64()),
    );
    node.stop();
    for kill in [false, true] {
        node.start();
        if kill {
            node.kill();
        } else {
            node.stop();
        }
        let start = Instant::now();
        node.start();
        let took = start.elapsed();
        let read = proc_field(node.pid(), "io", "rchar:").unwrap_or(0);
        row(
            &format!(
                "restart with an intact {gib} GiB database, after {}",
                if kill { "kill -9" } else { "SIGTERM" }
            ),
            "≤ 1 s, without reading it",
            &format!("{:.2} s, {} KiB read by every kind of call", took.as_secs_f64(), read >> 10),
        );
        node.stop();
    }
}

fn idle(scratch: &Scratch, databases: u64) {
    let mut node = Node::new(
        &scratch.join("idle"),
        Settings { sync_interval: "1s", log: "info", ..Settings::default() },
    );
    node.start();
    let start = Instant::now();
    let names: Vec<_> = (0..databases).map(|n| format!("db-{n}.db")).collect();
    for (n, name) in names.iter().enumerate() {
        let db = Connection::open(node.file(name)).expect("open a database");
        let mode = if n % 2 == 0 { "wal" } else { "delete" };
        db.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF; CREATE TABLE t(x); INSERT INTO t VALUES({n});"
        ))
        .expect("write");
    }
    let created = start.elapsed();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    node.wait_archived(&names);
    wait_for("uploads have settled", || (node.status()["archive"]["state"] == "synced").then_some(()));
    // Upkeep after the last upload belongs to the work, not to the idling.
    std::thread::sleep(Duration::from_secs(5));
    let requests = |node: &Node| node.status()["archive"]["requests"].to_string();
    let (pid, before, work) = (node.pid(), requests(&node), ticks(node.pid()));
    let seconds = 20;
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = ticks(pid) - work;
    let same = requests(&node) == before;
    let resident = proc_field(pid, "status", "VmRSS:").unwrap_or(0);
    row(&format!("{databases} databases created"), "–", &format!("{:.1} s", created.as_secs_f64()));
    row(&format!("{databases} databases, memory"), "≤ 100 MB", &format!("{} MiB resident", resident >> 10));
    row(
        &format!("{databases} databases idle for {seconds} s"),
        "no CPU, no archive requests",
        &format!("{spent} ticks of 10 ms, archive requests {}", if same { "none" } else { "some" }),
    );
    let calls = scratch.join("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-q", "-o"])
        .arg(&calls)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start strace");
    std::thread::sleep(Duration::from_secs(10));
    let strace_pid = i32::try_from(strace.id()).ok().and_then(rustix::process::Pid::from_raw);
    let _ = rustix::process::kill_process(strace_pid.expect("a process id"), rustix::process::Signal::INT);
    let _ = strace.wait();
    let seen = std::fs::read_to_string(&calls).unwrap_or_default();
    let woken = seen.lines().filter(|line| !line.contains("resumed") || line.contains("ETIMEDOUT")).count();
    let waiting =
        seen.lines().filter(|line| line.contains("unfinished") || line.contains("detached")).count();
    row(
        "its system calls within 10 s",
        "no timer ticking",
        &format!("{} beside {waiting} that wait", woken.saturating_sub(waiting)),
    );
    node.stop();
    let start = Instant::now();
    node.start();
    row(
        &format!("restart with {databases} databases"),
        "–",
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
    );
    node.stop();
    node.wipe_data();
    let start = Instant::now();
    node.start();
    row(
        &format!("cold start with {databases} databases"),
        "–",
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
    );
    node.stop();
}

fn main() {
    if !support::can_mount() {
        return;
    }
    let scratch = Scratch::new("bench-restore");
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    println!("| what | goal | measured |");
    println!("|---|---|---|");
    if wanted("restore") {
        restore_speed(&scratch, number("LITEFS_BENCH_MIB", 1024));
    }
    if wanted("sparse") {
        sparse_restart(&scratch, number("LITEFS_BENCH_SPARSE_GIB", 10));
    }
    if wanted("idle") {
        idle(&scratch, number("LITEFS_BENCH_DATABASES", 500));
    }
}
