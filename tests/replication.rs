//! Two nodes and a stream between them: real processes, real mounts. Readers on the
//! replica see what the primary commits a moment later and never anything else, whoever
//! is killed in between; what is not a peer is refused and changes nothing.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use support::mounted::Client;
use support::readers::{Habit, SCHEMA, grow, many, read};
use support::{Node, PATIENCE, Scratch, Settings, can_mount, wait_for};

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

/// The archive comes an hour too late for everything: what is on the replica came over
/// the stream.
fn node(scratch: &Scratch, name: &str, passthrough: bool) -> Node {
    let settings = Settings {
        lease: "type = \"storage\"\nttl = \"10s\"",
        sync_interval: "3600s",
        passthrough,
        ..Settings::default()
    };
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&scratch.join("archive")).advertised()
}

fn pair(label: &str, passthrough: bool) -> (Scratch, Node, Node) {
    let scratch = Scratch::new(label);
    let mut primary = node(&scratch, "primary", true);
    let mut replica = node(&scratch, "replica", passthrough);
    primary.start();
    primary.wait_primary().expect("the primary serves");
    replica.start();
    replica.wait_role("replica");
    (scratch, primary, replica)
}

fn database<'a>(status: &'a Value, db: &str) -> Option<&'a Value> {
    status["databases"].as_array()?.iter().find(|row| row["name"] == db)
}

/// Waits until the replica stands where the primary stands now.
fn wait_same(primary: &Node, replica: &Node, db: &str) {
    let pos = primary.pos(db);
    wait_for(&format!("{db} is at {pos} on the replica"), || {
        let status = replica.status();
        (database(&status, db)?["pos"] == pos.as_str()).then_some(())
    });
}

/// Both have the same bytes.
fn same(primary: &Node, replica: &Node, db: &str) {
    wait_same(primary, replica, db);
    let bytes = |node: &Node| node.get(&format!("/export?name={db}")).body;
    let (here, there) = (bytes(primary), bytes(replica));
    assert!(here.len() > 512 && here == there, "bytes of {db} differ");
}

fn begin(primary: &Node, db: &str, mode: &str) -> Client {
    let mut client = Client::open(&primary.file(db));
    client.rows(&format!("PRAGMA journal_mode = {mode}"));
    client.rows("PRAGMA synchronous = off");
    SCHEMA.split(';').for_each(|sql| drop(client.rows(sql)));
    client
}

fn there(replica: &Node, db: &str) {
    wait_for("the database is on the replica", || {
        let status = replica.status();
        let row = database(&status, db)?;
        (row["pages"].as_u64()? > 2).then_some(())
    });
}

/// Load on the primary, readers on the replica, and the replica is killed under both,
/// again and again.
fn kill_the_replica_under_load(mode: &str, passthrough: bool) {
    let (_scratch, mut primary, mut replica) = pair(&format!("replication-{mode}"), passthrough);
    let mut client = begin(&primary, "a.db", mode);
    let (stop, written) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let n = written.fetch_add(1, Ordering::AcqRel);
                match n % 50 {
                    49 => many(&mut client, 500, 3500),
                    _ => grow(&mut client, 100 + n % 7 * 900),
                }
            }
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..4 {
                wait_same_once(&primary, &replica, "a.db");
                let (path, enough) = (replica.file("a.db"), AtomicBool::new(false));
                std::thread::scope(|scope| {
                    for habit in [Habit::Loop, Habit::Long, Habit::Reopen] {
                        let (path, enough) = (&path, &enough);
                        scope.spawn(move || read(path, habit, enough));
                    }
                    advance(&written, 60);
                    enough.store(true, Ordering::Release);
                });
                bounded_wal(&replica, "a.db");
                advance(&written, 10 + round);
                replica.kill();
                advance(&written, 20);
                replica.start();
                replica.wait_role("replica");
            }
        }));
        stop.store(true, Ordering::Release);
        writer.join().expect("the writer");
        ended.expect("the replica");
    });
    same(&primary, &replica, "a.db");
    let mut reader = Client::open(&replica.file("a.db"));
    assert_eq!(reader.value("PRAGMA integrity_check"), "ok");
    reader.close();
    assert!(replica.log().contains("following the primary"), "it came over the stream");
    client.close();
    replica.stop();
    primary.stop();
}

/// Waits until so many more transactions were written.
fn advance(written: &AtomicU32, by: u32) {
    let from = written.load(Ordering::Acquire);
    wait_for("the writer goes on", || (written.load(Ordering::Acquire) >= from + by).then_some(()));
}

/// Waits until the replica has at least what the primary has now.
fn wait_same_once(primary: &Node, replica: &Node, db: &str) {
    let pos = primary.pos(db);
    wait_for("the replica comes after", || {
        let status = replica.status();
        (database(&status, db)?["pos"].as_str()?.get(..16)? >= pos.get(..16)?).then_some(())
    });
}

/// Checkpoints keep the WAL of a replica small; readers that stay can hold them up.
fn bounded_wal(replica: &Node, db: &str) {
    let wal = std::fs::metadata(replica.file(&format!("{db}-wal")));
    assert!(wal.is_ok_and(|wal| wal.len() < 256 << 20) || !replica.file(&format!("{db}-wal")).exists());
}

#[test]
fn a_wal_replica_killed_under_load_comes_back_to_the_chain() {
    needs_a_mount!();
    [true, false].into_iter().for_each(|passthrough| kill_the_replica_under_load("wal", passthrough));
}

#[test]
fn a_rollback_replica_killed_under_load_comes_back_to_the_chain() {
    needs_a_mount!();
    [true, false].into_iter().for_each(|passthrough| kill_the_replica_under_load("delete", passthrough));
}

#[test]
fn new_databases_drops_modes_and_page_sizes_arrive_and_lag_is_known() {
    needs_a_mount!();
    let (_scratch, mut primary, mut replica) = pair("replication-kinds", true);
    let mut first = begin(&primary, "a.db", "delete");
    grow(&mut first, 5000);
    std::fs::create_dir(primary.file("tenants")).expect("make a directory");
    // The kernel of the replica knows that there is none.
    assert!(!replica.file("tenants/b.db").exists() && !replica.file("tenants").exists());
    let second = begin(&primary, "tenants/b.db", "wal");
    there(&replica, "tenants/b.db");
    wait_for("it is in the mount", || replica.file("tenants/b.db").exists().then_some(()));
    assert_eq!(Client::open(&replica.file("tenants/b.db")).value("SELECT n FROM m"), "0");
    for step in ["PRAGMA page_size = 8192", "VACUUM", "PRAGMA journal_mode = wal"] {
        first.rows(step);
        grow(&mut first, 70);
        same(&primary, &replica, "a.db");
    }
    second.close();
    std::fs::remove_file(primary.file("tenants/b.db")).expect("drop a database");
    wait_for("the drop arrives", || (!replica.file("tenants/b.db").exists()).then_some(()));
    first.close();
    let lag = std::fs::read_to_string(replica.file(".lag")).expect("read .lag");
    let lag: i64 = lag.trim().parse().expect("a number");
    assert!((0..60_000).contains(&lag), "{lag}");
    assert!(replica.status()["lagMs"].as_u64().is_some_and(|lag| lag < 60_000));
    let metrics = String::from_utf8_lossy(&replica.get("/metrics").body).into_owned();
    assert!(metrics.contains("litefs_lag_seconds"), "{metrics}");
    replica.stop();
    primary.stop();
}

#[test]
fn a_transaction_of_many_pages_crosses_without_as_much_memory() {
    needs_a_mount!();
    let (_scratch, mut primary, mut replica) = pair("replication-large", true);
    let mut client = begin(&primary, "a.db", "wal");
    there(&replica, "a.db");
    let before = peak_memory(&replica);
    client.rows("INSERT INTO t SELECT randomblob(1000000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i FROM n)");
    wait_same(&primary, &replica, "a.db");
    let (at_primary, grown) = (peak_memory(&primary), peak_memory(&replica) - before);
    assert!(grown < 100 << 10, "the replica took {grown} KiB for 200 MB");
    assert!(at_primary < 200 << 10, "the primary has {at_primary} KiB");
    same(&primary, &replica, "a.db");
    client.close();
    replica.stop();
    primary.stop();
}

/// The most that a process ever had in memory, KiB.
fn peak_memory(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn peers_of_another_cluster_and_without_the_token_are_refused_with_a_reason() {
    needs_a_mount!();
    let (scratch, mut primary, mut replica) = pair("replication-refused", true);
    let client = begin(&primary, "a.db", "wal");
    there(&replica, "a.db");
    // Another cluster's node whose lease says that this primary is its own.
    let mut stranger = node(&scratch, "stranger", true);
    stranger = stranger.with_archive(&scratch.join("another archive"));
    stranger.start();
    stranger.wait_primary().expect("it is its own primary");
    let positions = primary.status()["databases"].clone();
    let reply = stranger.get("/info");
    let cluster = serde_json::from_slice::<Value>(&reply.body).expect("info")["clusterID"].clone();
    let refused = hello(&primary, cluster.as_str().expect("a cluster"));
    assert_eq!(refused.status, 409);
    assert!(String::from_utf8_lossy(&refused.body).contains("of cluster"), "{refused:?}");
    let garbage = primary.post_bytes("/stream", &[0xff; 4096]);
    assert_eq!(garbage.status, 400);
    assert_eq!(primary.status()["databases"], positions, "nothing changed");
    client.close();
    stranger.stop();
    replica.stop();
    primary.stop();
}

/// What a node answers to a peer of this cluster.
fn hello(node: &Node, cluster: &str) -> support::api::Reply {
    use litefs::peer::wire::{Hello, Message, Up};
    let hello = Hello {
        cluster: cluster.parse().expect("a cluster id"),
        node: litefs::words::NodeId::new(99),
        hostname: "stranger".to_owned(),
    };
    let mut bytes = Vec::new();
    Up::Hello(hello).write(&mut bytes);
    Up::Ready.write(&mut bytes);
    node.post_bytes("/stream", &bytes)
}

/// How long a test of silence takes at least: both sides' deadline.
const SILENCE: Duration = Duration::from_secs(4);

#[test]
fn a_primary_that_stands_still_is_noticed_and_followed_again() {
    needs_a_mount!();
    let (_scratch, mut primary, mut replica) = pair("replication-stopped", true);
    let mut client = begin(&primary, "a.db", "wal");
    there(&replica, "a.db");
    let said = replica.log().matches("the stream is over").count();
    primary.signal(rustix::process::Signal::STOP);
    let since = std::time::Instant::now();
    wait_for("the replica notices", || {
        (replica.log().matches("the stream is over").count() > said).then_some(())
    });
    let noticed = since.elapsed();
    primary.signal(rustix::process::Signal::CONT);
    assert!(noticed < PATIENCE && noticed > SILENCE / 4, "{noticed:?}");
    grow(&mut client, 100);
    same(&primary, &replica, "a.db");
    client.close();
    replica.stop();
    primary.stop();
}
