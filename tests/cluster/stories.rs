//! What happened to people, as tests.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;

use crate::nodes::{Cluster, TTL};
use crate::support::{Node, can_mount, wait_for};

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("open the database");
    connection.busy_timeout(Duration::from_secs(60)).expect("set the timeout");
    connection
}

fn prepare(node: &Node) {
    let db = open(&node.file("app.db"));
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY)").expect("prepare");
}

/// Inserts the numbers; all are acknowledged.
fn insert(node: &Node, numbers: std::ops::Range<u32>) {
    let db = open(&node.file("app.db"));
    for n in numbers {
        db.execute("INSERT INTO t VALUES(?1)", [n]).expect("the primary writes");
    }
}

fn numbers(node: &Node) -> Option<Vec<u32>> {
    let db = Connection::open(node.file("app.db")).ok()?;
    db.busy_timeout(Duration::from_secs(10)).ok()?;
    let mut query = db.prepare("SELECT n FROM t ORDER BY n").ok()?;
    let rows = query.query_map([], |row| row.get(0)).ok()?;
    rows.collect::<Result<_, _>>().ok()
}

fn has(node: &Node, expected: std::ops::Range<u32>) {
    let expected: Vec<u32> = expected.collect();
    wait_for("the numbers are there", || (numbers(node).as_ref() == Some(&expected)).then_some(()));
}

fn app() -> [String; 1] {
    ["app.db".to_owned()]
}

#[test]
fn a_new_machine_with_an_empty_disk_that_wants_to_be_primary_has_everything_first() {
    needs_a_mount!();
    let lease = "type = \"storage\"\nttl = \"4s\"\npromote = true";
    let mut cluster = Cluster::new("story-empty", 2, |number, settings| {
        if number == 1 {
            settings.lease = lease;
        }
    });
    cluster.nodes[0].start();
    cluster.nodes[0].wait_role("primary");
    prepare(&cluster.nodes[0]);
    for round in 0..3 {
        insert(&cluster.nodes[0], round * 10..round * 10 + 10);
        // The one with the data redeploys while the empty one comes up and wants the lease.
        cluster.nodes[1].wipe_data();
        cluster.nodes[1].spawn();
        cluster.nodes[0].stop();
        cluster.nodes[1].wait_primary().expect("the new machine is the primary");
        has(&cluster.nodes[1], 0..round * 10 + 10);
        cluster.nodes[0].start();
        has(&cluster.nodes[0], 0..round * 10 + 10);
        cluster.nodes[1].stop();
        cluster.nodes[0].wait_role("primary");
    }
    cluster.stop();
}

#[test]
fn who_was_stopped_while_others_wrote_has_it_all_when_started_alone() {
    needs_a_mount!();
    let mut cluster = Cluster::new("story-asleep", 3, |_, _| ());
    cluster.start();
    let first = cluster.wait_primary();
    prepare(&cluster.nodes[first]);
    let others: Vec<usize> = (0..3).filter(|node| *node != first).collect();
    insert(&cluster.nodes[first], 0..5);
    others.iter().for_each(|node| has(&cluster.nodes[*node], 0..5));
    others.iter().for_each(|node| cluster.nodes[*node].stop());
    insert(&cluster.nodes[first], 5..20);
    cluster.nodes[first].stop();
    // Their own disks are of an older day.
    for node in others {
        cluster.nodes[node].start();
        cluster.nodes[node].wait_role("primary");
        has(&cluster.nodes[node], 0..20);
        cluster.nodes[node].stop();
    }
}

#[test]
fn scaling_from_one_to_three_under_load_loses_nothing() {
    needs_a_mount!();
    let mut cluster = Cluster::new("story-scale", 3, |_, _| ());
    cluster.nodes[0].start();
    cluster.nodes[0].wait_role("primary");
    prepare(&cluster.nodes[0]);
    let (path, stop) = (cluster.nodes[0].file("app.db"), AtomicBool::new(false));
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (db, mut n) = (open(&path), 0u32);
            while !stop.load(Ordering::Acquire) {
                db.execute("INSERT INTO t VALUES(?1)", [n]).expect("the primary writes");
                n += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            n
        });
        let (first, others) = cluster.nodes.split_at_mut(1);
        for node in others {
            node.start();
            node.wait_role("replica");
            let at_least = numbers(&first[0]).expect("it reads").len();
            wait_for("it follows", || numbers(node).filter(|numbers| numbers.len() >= at_least));
        }
        stop.store(true, Ordering::Release);
        writer.join().expect("the writer")
    });
    cluster.nodes.iter().for_each(|node| has(node, 0..written));
    cluster.wait_equal(&app());
    assert_eq!(cluster.primary(), Some(0), "nobody took the lease away");
    cluster.stop();
}

#[test]
fn a_primary_suspended_for_three_terms_comes_back_as_a_replica() {
    needs_a_mount!();
    let mut cluster = Cluster::new("story-suspended", 2, |_, _| ());
    cluster.start();
    let first = cluster.wait_primary();
    let second = 1 - first;
    prepare(&cluster.nodes[first]);
    insert(&cluster.nodes[first], 0..20);
    cluster.nodes[first].wait_archived(&["app.db"]);
    let since = Instant::now();
    cluster.nodes[first].signal(Signal::STOP);
    cluster.nodes[second].wait_role("primary");
    let gap = since.elapsed();
    insert(&cluster.nodes[second], 20..30);
    std::thread::sleep((TTL * 3).saturating_sub(since.elapsed()));
    cluster.nodes[first].signal(Signal::CONT);
    cluster.nodes[first].wait_role("replica");
    has(&cluster.nodes[first], 0..30);
    cluster.wait_equal(&app());
    println!("the lease was taken over {} ms after the primary stood still", gap.as_millis());
    cluster.stop();
}

#[test]
fn a_connection_that_is_cut_without_a_word_is_noticed_on_both_ends() {
    needs_a_mount!();
    let mut cluster = Cluster::new("story-cut", 2, |_, settings| settings.sync_interval = "200ms");
    cluster.start();
    let first = cluster.wait_primary();
    let second = 1 - first;
    prepare(&cluster.nodes[first]);
    insert(&cluster.nodes[first], 0..10);
    has(&cluster.nodes[second], 0..10);
    wait_for("it follows", || (cluster.replicas(first) == 1).then_some(()));
    let Some(network) = &cluster.network else { return };
    let said = cluster.nodes[second].log().matches("the stream is over").count();
    network.cut(second);
    // Commits do not wait for a replica that is gone.
    let since = Instant::now();
    insert(&cluster.nodes[first], 10..20);
    println!("ten commits took {} ms with the replica cut off", since.elapsed().as_millis());
    wait_for("the primary notices", || (cluster.replicas(first) == 0).then_some(()));
    wait_for("the replica notices", || {
        (cluster.nodes[second].log().matches("the stream is over").count() > said).then_some(())
    });
    // The archive is a directory: it is still there.
    has(&cluster.nodes[second], 0..20);
    network.heal(second);
    insert(&cluster.nodes[first], 20..30);
    has(&cluster.nodes[second], 0..30);
    wait_for("it follows again", || (cluster.replicas(first) == 1).then_some(()));
    cluster.wait_equal(&app());
    cluster.stop();
}
