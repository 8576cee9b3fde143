//! How many round trips SQLite's statements cost: the mount's speed. The counts are the
//! kernel's, exact but for what memory pressure may add: a page or name that the kernel
//! dropped is asked for again.

mod support;

use litefs::fuse::{Op, OpCounts, Passthrough};

use support::mounted::{Client, Mounted};
use support::{can_mount, wait_for};

/// Repetitions of what is counted.
const TIMES: u64 = 100;

/// What memory pressure may add in that many.
const SLACK: u64 = 5;

/// Waits until the kernel has released `open` fewer handles than it opened: a RELEASE
/// comes some time after the close.
fn settle(mounted: &Mounted, open: u64) {
    wait_for("the handles to be released", || {
        let counts = mounted.mount.counters();
        (counts.get(Op::Open) + counts.get(Op::Create) <= counts.get(Op::Release) + open).then_some(())
    });
}

/// Counts the requests that `statement`, done [`TIMES`] times, makes over a connection
/// that has `open` files open in between.
fn count(mounted: &Mounted, open: u64, mut statement: impl FnMut()) -> OpCounts {
    settle(mounted, open);
    let before = mounted.mount.counters();
    for _ in 0..TIMES {
        statement();
    }
    settle(mounted, open);
    mounted.mount.counters().since(&before)
}

#[track_caller]
fn assert_at_most(what: &str, counts: &OpCounts, each: u64) {
    let list: Vec<String> = counts.nonzero().map(|(op, count)| format!("{}={count}", op.name())).collect();
    assert!(
        counts.total() <= each * TIMES + SLACK,
        "{what}: {} requests in {TIMES}, {each} each are allowed: {list:?}",
        counts.total()
    );
}

fn prepared(mounted: &Mounted, name: &str, mode: &str, sync: &str) -> Client {
    let mut client = mounted.connect(name);
    assert_eq!(client.value(&format!("PRAGMA journal_mode = {mode}")), mode);
    client.rows(&format!("PRAGMA synchronous = {sync}"));
    client.rows("PRAGMA wal_autocheckpoint = 0");
    client.rows("CREATE TABLE t (a)");
    client.rows("INSERT INTO t VALUES (0)");
    client.rows("SELECT count(*) FROM t");
    client
}

#[test]
fn a_read_transaction_makes_no_request() {
    if !can_mount() {
        return;
    }
    for passthrough in support::mounted::BOTH {
        let mounted = Mounted::new("op-read", passthrough);
        for (mode, open) in [("delete", 1), ("truncate", 1), ("wal", 3)] {
            let mut client = prepared(&mounted, &format!("{mode}.db"), mode, "full");
            let counts = count(&mounted, open, || drop(client.rows("SELECT count(*) FROM t")));
            assert_at_most(&format!("read, {mode}, {passthrough:?}"), &counts, 0);
        }
    }
}

#[test]
fn a_wal_commit_makes_no_request_at_normal_and_one_at_full() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::new("op-wal", Passthrough::Auto);
    // Without passthrough: a frame's header, and its page split at the page boundary.
    let extra = if mounted.mount.passthrough() { 0 } else { 4 };
    for (sync, each) in [("off", 0), ("normal", 0), ("full", 1)] {
        let mut client = prepared(&mounted, &format!("{sync}.db"), "wal", sync);
        let counts = count(&mounted, 3, || drop(client.rows("INSERT INTO t VALUES (1)")));
        assert_at_most(&format!("wal commit, {sync}"), &counts, each + extra);
        assert_eq!(
            counts.get(Op::Fsync),
            each * TIMES,
            "no fsync of ours where SQLite makes none, or one missing"
        );
    }
}

#[test]
fn a_delete_mode_commit_makes_eight_requests_at_off_and_twelve_at_full() {
    if !can_mount() {
        return;
    }
    let mounted = Mounted::new("op-delete", Passthrough::Auto);
    let extra = if mounted.mount.passthrough() { 0 } else { 9 };
    for (sync, each, fsyncs) in [("off", 8, 0), ("normal", 11, 2), ("full", 12, 3)] {
        let mut client = prepared(&mounted, &format!("{sync}.db"), "delete", sync);
        let counts = count(&mounted, 1, || drop(client.rows("INSERT INTO t VALUES (1)")));
        assert_at_most(&format!("delete commit, {sync}"), &counts, each + extra);
        assert_eq!(counts.get(Op::Fsync), fsyncs * TIMES);
        assert_eq!(counts.get(Op::Unlink), TIMES);
        assert_eq!(counts.get(Op::Flush), 0);
    }
}

#[test]
fn opening_selecting_and_closing_makes_two_requests() {
    if !can_mount() {
        return;
    }
    for passthrough in support::mounted::BOTH {
        let mounted = Mounted::new("op-open", passthrough);
        let client = prepared(&mounted, "a.db", "delete", "full");
        client.close();
        let path = mounted.path("a.db");
        let script = format!(
            "import sqlite3, sys\n\
             def one():\n\
             \x20 db = sqlite3.connect({path:?}); db.execute('select count(*) from t').fetchall(); db.close()\n\
             one(); print('ready', flush=True); sys.stdin.readline()\n\
             for _ in range({TIMES}): one()\n"
        );
        let mut child = std::process::Command::new("python3")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("its output");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut ready).expect("ready");
        settle(&mounted, 0);
        let before = mounted.mount.counters();
        std::io::Write::write_all(&mut child.stdin.take().expect("its input"), b"\n").expect("go");
        let status = support::process::wait(&mut child).expect("the child ends");
        assert!(status.success());
        settle(&mounted, 0);
        let counts = mounted.mount.counters().since(&before);
        assert_at_most(&format!("open, select, close, {passthrough:?}"), &counts, 2);
    }
}
