//! The main promise: what programs of any language commit in the mount is in the
//! archive, and comes back onto an empty disk. Every journal mode, three page
//! sizes, with kernel passthrough and without, many databases at once; on a directory
//! and on MinIO.

mod support;

use std::collections::BTreeMap;

use support::drivers::{self, Driver};
use support::worker::{Sqlite, Worker};
use support::{Node, Outside, PATIENCE, Scratch, Settings, can_mount, content};

const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];
const PAGE_SIZES: [u32; 3] = [512, 4096, 65536];

/// One database of the matrix.
struct Case {
    name: String,
    mode: &'static str,
    page_size: u32,
    writer: Driver,
    reader: Driver,
}

fn matrix(page_sizes: &[u32]) -> Vec<Case> {
    let drivers = Driver::all();
    let mut cases = Vec::new();
    for mode in MODES {
        for &page_size in page_sizes {
            for (n, writer) in drivers.iter().enumerate() {
                cases.push(Case {
                    name: format!("{mode}-{page_size}-{n}.db"),
                    mode,
                    page_size,
                    writer: writer.clone(),
                    // Another language reads what one has written.
                    reader: drivers[(n + 1) % drivers.len()].clone(),
                });
            }
        }
    }
    cases
}

fn create(case: &Case) -> String {
    format!(
        "PRAGMA page_size={}; PRAGMA journal_mode={};
         CREATE TABLE t(id INTEGER PRIMARY KEY, round INT, data BLOB); CREATE INDEX i ON t(round, id);",
        case.page_size, case.mode
    )
}

/// A few transactions, one of them with pages of overflow, one that frees pages.
fn write(case: &Case, round: u32) -> String {
    let from = round * 1000;
    format!(
        "PRAGMA journal_mode={};
         INSERT INTO t SELECT {from} + value, {round}, zeroblob(value * 7) FROM generate;
         BEGIN; INSERT INTO t VALUES({from} + 500, {round}, zeroblob({})); UPDATE t SET data = x'00ff' WHERE id % 7 = 3; COMMIT;
         BEGIN; DELETE FROM t; ROLLBACK;
         DELETE FROM t WHERE id = {from} + 11;
         INSERT INTO t VALUES({from} + 999, {round}, 'the last one of the round');",
        case.mode,
        case.page_size * 3
    )
    .replace(
        "FROM generate",
        "FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 60) SELECT value FROM n)",
    )
}

const ROWS: &str = "SELECT id, round, length(data), hex(substr(data, 1, 8)) FROM t ORDER BY id";

/// Soundness, page size, and whether it is in WAL mode (the other modes are the
/// connection's, and a new one begins with `delete`).
const SHAPE: &str = "SELECT (SELECT integrity_check FROM pragma_integrity_check(1)), \
     (SELECT page_size FROM pragma_page_size), (SELECT journal_mode FROM pragma_journal_mode)";

/// What is in every database now, and where it stands.
fn state(node: &Node, cases: &[Case]) -> BTreeMap<String, (String, String)> {
    let mut state = BTreeMap::new();
    for case in cases {
        let dump = drivers::dump(&node.file(&case.name));
        state.insert(case.name.clone(), (node.pos(&case.name), dump));
    }
    state
}

fn check(node: &Node, cases: &[Case], expected: &BTreeMap<String, (String, String)>) {
    for case in cases {
        let file = node.file(&case.name);
        let (pos, dump) = &expected[&case.name];
        assert_eq!(&node.pos(&case.name), pos, "position of {}", case.name);
        if let Some(difference) = content::first_difference(dump, &drivers::dump(&file)) {
            panic!("{}: {difference}", case.name);
        }
        let rows = case.reader.query(&file, ROWS);
        assert_eq!(rows.lines().count(), dump.matches("INSERT INTO t ").count(), "{}: rows", case.name);
        assert!(rows.contains("|1|"), "{} has the rows of round 1", case.name);
        let shape = Driver::Program.query(&file, SHAPE);
        let mode = if case.mode == "wal" { "wal" } else { "delete" };
        assert_eq!(shape.trim(), format!("ok|{}|{mode}", case.page_size), "{}", case.name);
        assert_eq!(&node.pos(&case.name), pos, "reading moved the position of {}", case.name);
    }
}

fn round_trip(name: &str, passthrough: bool) {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new(name);
    let node = Node::new(scratch.path(), Settings { passthrough, ..Settings::default() });
    there_and_back(node, &matrix(&PAGE_SIZES));
}

/// Stopped, killed, with its disk and without: each time everything is there again.
fn there_and_back(mut node: Node, cases: &[Case]) {
    let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();

    node.start();
    node.wait_role("primary");
    for case in cases {
        case.writer.exec(&node.file(&case.name), &(create(case) + &write(case, 1)));
    }
    let before = state(&node, cases);
    node.stop();
    node.wipe_data();

    node.start();
    node.wait_role("primary");
    check(&node, cases, &before);
    for case in cases {
        case.writer.exec(&node.file(&case.name), &write(case, 2));
    }
    let before = state(&node, cases);
    node.wait_archived(&names);
    node.kill();
    node.wipe_data();

    node.start();
    node.wait_role("primary");
    check(&node, cases, &before);
    // An intact disk: nothing may be lost whatever the archive has.
    for case in cases {
        case.writer.exec(&node.file(&case.name), &write(case, 3));
    }
    let before = state(&node, cases);
    node.kill();

    node.start();
    node.wait_role("primary");
    check(&node, cases, &before);
    node.stop();
}

#[test]
fn everything_comes_back_onto_an_empty_disk_with_passthrough() {
    round_trip("round-trip", true);
}

#[test]
fn everything_comes_back_onto_an_empty_disk_without_passthrough() {
    round_trip("round-trip-off", false);
}

#[test]
fn everything_comes_back_onto_an_empty_disk_from_minio() {
    let Some(minio) = Outside::minio() else { return };
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("round-trip-minio");
    let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
    let (lease, env) = ("type = \"storage\"\nttl = \"10s\"", minio.environment().to_vec());
    let node = Node::new(scratch.path(), Settings { lease, env, ..Settings::default() });
    there_and_back(node.with_archive_url(&minio.url_of(&prefix)), &matrix(&[4096]));
}

/// Rows 1..=n, nothing missing in between: the number of transactions that are there.
fn prefix(rows: &str, db: &str) -> usize {
    let ids: Vec<usize> = rows.lines().map(|id| id.parse().expect("a number")).collect();
    assert_eq!(ids, (1..=ids.len()).collect::<Vec<_>>(), "{db} is no prefix of what was committed");
    ids.len()
}

#[test]
fn after_kill_and_an_empty_disk_only_what_was_not_archived_is_missing() {
    if !can_mount() {
        return;
    }
    const FIRST: usize = 20;
    const MORE: usize = 200;
    let scratch = Scratch::new("kill-wipe");
    // A slow archive, so that the kill finds transactions that it does not have.
    let mut node = Node::new(scratch.path(), Settings { sync_interval: "500ms", ..Settings::default() });
    node.start();
    let insert = |range: std::ops::RangeInclusive<usize>| -> String {
        range.map(|id| format!("INSERT INTO t VALUES({id});")).collect()
    };
    let names: Vec<String> = MODES.iter().map(|mode| format!("{mode}.db")).collect();
    for (mode, name) in MODES.iter().zip(&names) {
        let create = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY);");
        Driver::Program.exec(&node.file(name), &(create + &insert(1..=FIRST)));
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    node.wait_archived(&names);
    for name in &names {
        Driver::Program.exec(&node.file(name), &insert(FIRST + 1..=MORE));
    }
    node.kill();
    node.wipe_data();
    node.start();
    for name in &names {
        let there = prefix(&Driver::Program.query(&node.file(name), "SELECT id FROM t ORDER BY id"), name);
        assert!((FIRST..=MORE).contains(&there), "{name} came back with {there} transactions");
        assert_eq!(drivers::integrity(&node.file(name)), "ok", "{name}");
        // And it goes on from there.
        Driver::Program.exec(&node.file(name), "INSERT INTO t VALUES(100000)");
    }
    node.stop();
}

#[test]
fn sigterm_drains_what_open_connections_have_committed() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("open-connections");
    // So slow that only the flush at the end can bring it into the archive.
    let mut node = Node::new(scratch.path(), Settings { sync_interval: "60s", ..Settings::default() });
    node.start();
    let mut workers = Vec::new();
    for mode in MODES {
        let mut worker = Worker::start(Sqlite::System);
        let file = node.file(&format!("{mode}.db"));
        worker.open(&file, PATIENCE).expect("alive").expect("open");
        let groups: Vec<Vec<String>> =
            [format!("PRAGMA journal_mode={mode}"), "CREATE TABLE t(id INTEGER PRIMARY KEY)".to_owned()]
                .into_iter()
                .chain((1..=50).map(|id| format!("INSERT INTO t VALUES({id})")))
                .map(|sql| vec![sql])
                .collect();
        for outcome in worker.groups(&groups).expect("alive") {
            outcome.expect("commit");
        }
        workers.push(worker);
    }
    let positions: Vec<_> = MODES.iter().map(|mode| node.pos(&format!("{mode}.db"))).collect();
    node.signal(rustix::process::Signal::TERM);
    let status = node.wait_end();
    assert_eq!(status.code(), Some(0), "with applications still there the node ended with {status:?}");
    drop(workers);
    support::node::unmount(&node.mount());
    node.wipe_data();
    node.start();
    for (mode, pos) in MODES.iter().zip(positions) {
        let name = format!("{mode}.db");
        assert_eq!(node.pos(&name), pos, "{name}");
        let rows = Driver::Python.query(&node.file(&name), "SELECT id FROM t ORDER BY id");
        assert_eq!(prefix(&rows, &name), 50, "{name}");
    }
    node.stop();
}

#[test]
fn a_second_stop_and_start_changes_nothing() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new("restart");
    let mut node = Node::new(scratch.path(), Settings::default());
    node.start();
    Driver::Program
        .exec(&node.file("a.db"), "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    Driver::Program.exec(&node.file("b.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(2);");
    let before = [node.pos("a.db"), node.pos("b.db")];
    for _ in 0..3 {
        node.stop();
        node.start();
        assert_eq!([node.pos("a.db"), node.pos("b.db")], before);
        assert_eq!(Driver::Program.query(&node.file("a.db"), "SELECT x FROM t").trim(), "1");
        assert_eq!(Driver::Program.query(&node.file("b.db"), "SELECT x FROM t").trim(), "2");
    }
    node.stop();
}

/// The page at 1 GiB holds SQLite's locks and never content: it is in no change set, no
/// checksum and no restored file, whichever way the database got beyond it.
#[test]
fn a_database_beyond_the_lock_page_comes_back() {
    if !can_mount() {
        return;
    }
    for (passthrough, mode) in [(true, "wal"), (false, "delete")] {
        let scratch = Scratch::new("lock-page");
        // One transaction is larger than what may wait for the archive by default.
        let storage = "backlog = \"4GB\"\n".to_owned();
        let mut node = Node::new(scratch.path(), Settings { passthrough, storage, ..Settings::default() });
        node.start();
        let file = node.file("a.db");
        let fill = format!(
            "PRAGMA page_size=65536; PRAGMA journal_mode={mode}; PRAGMA synchronous=off;
             CREATE TABLE low(x); INSERT INTO low VALUES(1); CREATE TABLE t(data);
             INSERT INTO t VALUES(zeroblob(550000000)); INSERT INTO t VALUES(zeroblob(550000000));
             CREATE TABLE high(x); INSERT INTO high VALUES(2);"
        );
        Driver::Program.exec(&file, &fill);
        Driver::Program.exec(&file, "UPDATE low SET x = 10; UPDATE high SET x = 20;");
        let look = "SELECT (SELECT x FROM low), (SELECT x FROM high), (SELECT sum(length(data)) FROM t), \
                    quick_check, page_count > 16385 FROM pragma_quick_check, pragma_page_count";
        let before = (node.pos("a.db"), Driver::Program.query(&file, look));
        assert_eq!(before.1.trim(), "10|20|1100000000|ok|1", "{mode}: not what was written");
        node.stop();
        node.wipe_data();
        node.start();
        assert_eq!((node.pos("a.db"), Driver::Python.query(&file, look)), before, "{mode}: from the archive");
        Driver::Python.exec(&file, "UPDATE high SET x = 30;");
        let before = node.pos("a.db");
        node.kill();
        node.start();
        assert_eq!(node.pos("a.db"), before, "{mode}: after a kill");
        assert_eq!(Driver::Program.query(&file, look).trim(), "10|30|1100000000|ok|1", "{mode}");
        node.stop();
    }
}
