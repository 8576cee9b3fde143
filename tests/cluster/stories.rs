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

/// What a node says while its archive's disk is not mounted.
fn waits_for_the_disk(node: &Node) {
    // It has tried more than once.
    let before = requests(node);
    wait_for("it asks again", || (requests(node)? > before? + 6).then_some(()));
    let status = node.status();
    assert_eq!(status["archive"]["state"], "unreachable", "{status}");
    let why = status["archive"]["error"].as_str().expect("why");
    assert!(why.contains("mount its disk"), "{why}");
    let health = node.get("/health");
    assert_eq!(health.status, 503);
    assert!(String::from_utf8_lossy(&health.body).contains("mount its disk"), "{health:?}");
}

/// How many requests it made to its archive.
fn requests(node: &Node) -> Option<u64> {
    let status = node.try_status()?;
    Some(status["archive"]["requests"].as_object()?.values().filter_map(serde_json::Value::as_u64).sum())
}

#[test]
fn the_archive_unreachable_at_start() {
    needs_a_mount!();
    let mut cluster = Cluster::new("story-no-disk", 2, |number, settings| {
        if number == 1 {
            settings.storage = "on-unreachable = \"serve-stale\"".to_owned();
        }
    });
    cluster.start();
    let first = cluster.wait_primary();
    prepare(&cluster.nodes[first]);
    insert(&cluster.nodes[first], 0..10);
    has(&cluster.nodes[1 - first], 0..10);
    cluster.stop();
    let archive = cluster.nodes[0].archive().to_owned();
    let away = archive.with_file_name("archive-unmounted");
    for (round, mount_point) in [(1, false), (2, true)] {
        std::fs::rename(&archive, &away).expect("unmount its disk");
        if mount_point {
            std::fs::create_dir(&archive).expect("an empty mount point");
        }
        let said = "the archive cannot be used: waiting for it";
        let before = cluster.nodes[0].log().matches(said).count();
        cluster.nodes.iter_mut().for_each(Node::spawn);
        // One waits, the other serves what it has, and neither writes.
        wait_for("it waits", || (cluster.nodes[0].log().matches(said).count() > before).then_some(()));
        waits_for_the_disk(&cluster.nodes[0]);
        assert!(!cluster.nodes[0].is_mounted(), "it serves without its archive");
        cluster.nodes[1].wait_role("replica");
        has(&cluster.nodes[1], 0..round * 10);
        waits_for_the_disk(&cluster.nodes[1]);
        assert_eq!(cluster.primary(), None, "nobody is the primary on no archive");
        assert_eq!(cluster.nodes[0].log().matches(said).count(), before + 1, "it says so once");
        match mount_point {
            // It fails where something was written.
            true => std::fs::remove_dir(&archive).expect("the mount point is as empty as it was"),
            false => assert!(!archive.exists(), "nobody makes the directory"),
        }
        std::fs::rename(&away, &archive).expect("mount its disk");
        cluster.nodes.iter_mut().for_each(|node| node.wait_ready().expect("it goes on by itself"));
        let primary = cluster.wait_primary();
        insert(&cluster.nodes[primary], round * 10..round * 10 + 10);
        cluster.nodes.iter().for_each(|node| has(node, 0..round * 10 + 10));
        cluster.stop();
    }
}
