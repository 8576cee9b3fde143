//! Two nodes, one archive: whatever order they start, stop, die, sleep and wake in,
//! one writes at a time, and what was acknowledged is in the chain or parked. Real
//! processes, real mounts, the storage lease.

mod support;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;
use support::node::{Node, Settings};
use support::scratch::Scratch;
use support::{can_mount, wait_for};

const LEASE: &str = "type = \"storage\"\nttl = \"2s\"";

/// Node `name` of a cluster whose archive is `base/archive`.
fn node(base: &Path, name: &str) -> Node {
    let settings = Settings { lease: LEASE, ..Settings::default() };
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&base.join("archive"))
}

fn connect(node: &Node) -> Connection {
    let connection = Connection::open(node.file("app.db")).expect("open the database");
    connection.busy_timeout(Duration::from_secs(10)).expect("set the timeout");
    connection
}

/// Inserts the numbers; how many SQLite acknowledged.
fn insert(connection: &Connection, numbers: std::ops::Range<u32>) -> Vec<u32> {
    let ddl = "CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY)";
    if connection.execute_batch(ddl).is_err() {
        return Vec::new();
    }
    numbers.take_while(|n| connection.execute("INSERT INTO t VALUES(?1)", [n]).is_ok()).collect()
}

/// A connection that waits for nothing.
fn connect_at_once(node: &Node) -> Connection {
    Connection::open(node.file("app.db")).expect("open the database")
}

/// The numbers, if there are any yet.
fn numbers_if_any(node: &Node) -> Option<Vec<u32>> {
    let connection = Connection::open(node.file("app.db")).ok()?;
    let there = connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0));
    there.ok().map(|_| numbers(&connection))
}

fn numbers(connection: &Connection) -> Vec<u32> {
    let mut query = connection.prepare("SELECT n FROM t ORDER BY n").expect("prepare");
    let rows = query.query_map([], |row| row.get(0)).expect("query");
    rows.collect::<Result<_, _>>().expect("read the numbers")
}

#[test]
fn second_node_waits_and_goes_on_where_the_first_stopped() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("two-nodes-stop");
    let (mut first, mut second) = (node(scratch.path(), "first"), node(scratch.path(), "second"));
    first.start();
    second.start();
    second.wait_role("replica");
    let connection = connect(&first);
    connection.execute_batch("PRAGMA journal_mode=WAL").expect("WAL");
    assert_eq!(insert(&connection, 0..20).len(), 20);
    drop(connection);
    wait_for("the replica follows", || numbers_if_any(&second).filter(|found| found.len() == 20));
    assert!(insert(&connect_at_once(&second), 100..101).is_empty(), "a replica refuses to write");
    first.stop();
    second.wait_primary().expect("the second node is the primary");
    let connection = connect(&second);
    assert_eq!(numbers(&connection), (0..20).collect::<Vec<_>>());
    assert_eq!(insert(&connection, 20..30).len(), 10);
    drop(connection);
    second.stop();
}

#[test]
fn second_node_takes_over_from_a_killed_one_with_all_that_was_archived() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("two-nodes-kill");
    let (mut first, mut second) = (node(scratch.path(), "first"), node(scratch.path(), "second"));
    first.start();
    second.spawn();
    assert_eq!(insert(&connect(&first), 0..20).len(), 20);
    first.wait_archived(&["app.db"]);
    first.kill();
    second.wait_primary().expect("the second node is the primary");
    assert_eq!(insert(&connect(&second), 20..30).len(), 10);
    // The first comes back with its disk, waits its turn, and then has it all.
    first.start();
    first.wait_role("replica");
    second.stop();
    first.wait_primary().expect("the first node is the primary again");
    assert_eq!(numbers(&connect(&first)), (0..30).collect::<Vec<_>>());
    first.stop();
}

#[test]
fn a_node_that_slept_through_its_lease_parks_what_it_acknowledged_and_rejoins() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("two-nodes-sleep");
    let (mut first, mut second) = (node(scratch.path(), "first"), node(scratch.path(), "second"));
    // Commits of the first node stay local: it never gets to put a second segment.
    first.settings.sync_interval = "3600s";
    first.start();
    let connection = connect(&first);
    let acknowledged = insert(&connection, 0..40);
    assert_eq!(acknowledged.len(), 40);
    drop(connection);
    second.spawn();
    first.signal(Signal::STOP);
    second.wait_primary().expect("the second node takes over");
    let mut chain = numbers(&connect(&second));
    assert!(insert(&connect(&second), 100..110).len() == 10);
    second.wait_archived(&["app.db"]);
    chain.extend(100..110);
    first.signal(Signal::CONT);
    wait_for("the first node starts over", || {
        let log = first.log();
        (log.contains("starting over as a replica") && log.contains("branch lost")).then_some(())
    });
    let parked = std::fs::read_dir(first.data().join("parked")).expect("a parked branch").next();
    let parked = parked.expect("one").expect("listed").path().join("database");
    let copy = Connection::open(parked).expect("open the parked branch");
    assert_eq!(numbers(&copy), (0..40).collect::<Vec<_>>(), "everything acknowledged is parked");
    second.stop();
    first.wait_primary().expect("the first node is the primary again");
    assert_eq!(numbers(&connect(&first)), chain);
    first.stop();
}

#[test]
fn a_stop_that_comes_while_a_node_starts_over_is_not_lost() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    for _ in 0..3 {
        let scratch = Scratch::new("two-nodes-over");
        let (mut first, mut second) = (node(scratch.path(), "first"), node(scratch.path(), "second"));
        first.settings.sync_interval = "3600s";
        first.start();
        assert_eq!(insert(&connect(&first), 0..40).len(), 40);
        second.spawn();
        first.signal(Signal::STOP);
        second.wait_primary().expect("the second node takes over");
        assert_eq!(insert(&connect(&second), 100..110).len(), 10);
        second.wait_archived(&["app.db"]);
        first.signal(Signal::CONT);
        wait_for("the first node starts over", || {
            first.log().contains("starting over as a replica").then_some(())
        });
        // Before, while, or after the program is started anew.
        first.signal(Signal::TERM);
        let status = first.wait_end();
        assert!(status.code() == Some(0) || status.signal() == Some(15), "it ended with {status:?}");
        first.start();
        first.wait_role("replica");
        assert!(first.data().join("parked").exists(), "its branch is parked then, at the latest");
        second.stop();
        first.stop();
    }
}

#[test]
fn empty_node_never_wins_over_a_longer_chain() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("two-nodes-empty");
    let mut first = node(scratch.path(), "first");
    let mut second = node(scratch.path(), "second");
    let mut expected = Vec::new();
    for round in 0..4u32 {
        // The one with the data redeploys while the one with an empty disk starts.
        first.start();
        first.wait_primary().expect("the first node is the primary");
        expected.extend(insert(&connect(&first), round * 10..round * 10 + 10));
        second.wipe_data();
        second.spawn();
        first.stop();
        second.wait_primary().expect("the empty node is the primary");
        assert_eq!(numbers(&connect(&second)), expected, "round {round}");
        second.stop();
    }
    assert_eq!(expected.len(), 40);
}
