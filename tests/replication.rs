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

/// Between two transactions of the load.
const PACE: Duration = Duration::from_millis(3);

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
                // The pace of the load: flat out, the database would have gigabytes by the
                // time that the readers, who read all of it, are through.
                std::thread::park_timeout(PACE);
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
fn a_replica_that_slept_longer_than_the_primary_keeps_its_log_gets_it_from_the_archive() {
    needs_a_mount!();
    let scratch = Scratch::new("replication-slept");
    let (mut primary, mut replica) = (node(&scratch, "primary", true), node(&scratch, "replica", true));
    primary.settings.sync_interval = "20ms";
    primary.settings.data = "retention = \"0s\"\nretention-size = \"1MB\"".to_owned();
    primary.start();
    primary.wait_primary().expect("the primary serves");
    replica.start();
    replica.wait_role("replica");
    let mut client = begin(&primary, "a.db", "wal");
    there(&replica, "a.db");
    replica.signal(rustix::process::Signal::STOP);
    // A file of the log is full with 64 MB.
    (0..12).for_each(|_| many(&mut client, 2000, 3500));
    primary.wait_archived(&["a.db"]);
    let oldest = || {
        let files = std::fs::read_dir(primary.data().join("log")).expect("the log").flatten();
        files.map(|file| file.file_name()).filter(|name| name.to_string_lossy().ends_with(".log")).min()
    };
    wait_for("the primary forgets", || {
        // Its upkeep comes after a commit.
        grow(&mut client, 10);
        oldest().filter(|name| *name != *"0000000000000001.log")
    });
    replica.signal(rustix::process::Signal::CONT);
    same(&primary, &replica, "a.db");
    // By itself, or told by the primary.
    assert!(replica.log().contains("followed the archive"), "it came from there");
    grow(&mut client, 10);
    same(&primary, &replica, "a.db");
    client.close();
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
fn peers_that_do_not_belong_here_are_refused_with_a_reason_and_change_nothing() {
    needs_a_mount!();
    const TOKEN: &str = "a shared secret";
    let scratch = Scratch::new("replication-refused");
    let member = |name: &str, token: &str, archive: &str| {
        let mut node = node(&scratch, name, true).with_archive(&scratch.join(archive));
        node.settings.token = Some(token.to_owned());
        node
    };
    let mut primary = member("primary", TOKEN, "archive");
    let mut replica = member("replica", TOKEN, "archive");
    let mut stranger = member("stranger", TOKEN, "another archive");
    let mut wrong = member("wrong", "a guess", "archive");
    primary.start();
    primary.wait_primary().expect("the primary serves");
    replica.start();
    replica.wait_role("replica");
    let client = begin(&primary, "a.db", "wal");
    there(&replica, "a.db");
    // Another cluster's node whose lease says that this primary is its own.
    stranger.start();
    stranger.wait_primary().expect("it is its own primary");
    let positions = primary.status()["databases"].clone();
    let cluster_of = |node: &Node| {
        let info: Value = serde_json::from_slice(&node.get("/info").body).expect("info");
        info["clusterID"].as_str().expect("a cluster").to_owned()
    };
    let other_cluster = hello(&cluster_of(&stranger));
    let ours = hello(&cluster_of(&primary));
    let mut other_version = ours.clone();
    other_version[10] = 77;
    let long = vec![("X-Long", "a".repeat(1 << 17))];
    let token = |token: &str| vec![("Authorization", format!("Bearer {token}"))];
    let ask = |headers: &[(&str, String)], body: &[u8]| said_to(&primary, headers, body);
    for (reply, code, reason) in [
        (ask(&token(TOKEN), &other_cluster), "409", "of cluster"),
        (ask(&token(TOKEN), &other_version), "409", "version 77"),
        (ask(&token(TOKEN), &[0xff; 4096]), "400", "a frame of kind"),
        (ask(&token("a guess"), &ours), "401", "token"),
        (ask(&[], &ours), "401", "token"),
        (ask(&long, &[]), "431", ""),
    ] {
        let known = reply.starts_with(&format!("HTTP/1.1 {code} ")) && reply.contains(reason);
        // The reply to what was not read to its end can be lost with the reset
        // (RFC 9293 §3.10.4).
        assert!(known || reply.is_empty() && code == "431", "{code}: {reply}");
    }
    // A real node with the wrong token serves what the archive has.
    wrong.start();
    wrong.wait_role("replica");
    wait_for("it says why it does not follow", || {
        let log = wrong.log();
        (log.contains("the primary cannot be followed") && log.contains("refuses the stream")).then_some(())
    });
    assert_eq!(primary.status()["databases"], positions, "nothing changed");
    assert_eq!(primary.status()["replicas"].as_array().map(Vec::len), Some(1), "and nobody else follows");
    client.close();
    for node in [&mut wrong, &mut stranger, &mut replica, &mut primary] {
        node.stop();
    }
}

/// The beginning of a stream, as a node of this cluster says it.
fn hello(cluster: &str) -> Vec<u8> {
    use litefs::peer::wire::{Hello, Message, Up};
    let hello = Hello {
        cluster: cluster.parse().expect("a cluster id"),
        node: litefs::words::NodeId::new(99),
        hostname: "stranger".to_owned(),
    };
    let mut bytes = Vec::new();
    Up::Hello(hello).write(&mut bytes);
    Up::Ready.write(&mut bytes);
    bytes
}

/// What a node answers to a stream that begins so.
fn said_to(node: &Node, headers: &[(&str, String)], body: &[u8]) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(node.api()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "POST /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    // It may be refused before all of it is sent.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

/// How long a test of silence takes at least: both sides' deadline.
const SILENCE: Duration = Duration::from_secs(4);

#[test]
fn a_primary_hands_over_to_a_replica_that_is_named_by_its_host() {
    needs_a_mount!();
    let (_scratch, mut primary, mut replica) = pair("replication-handoff", true);
    let mut client = begin(&primary, "a.db", "wal");
    grow(&mut client, 100);
    there(&replica, "a.db");
    let name = primary.status()["replicas"][0]["hostname"].as_str().expect("a hostname").to_owned();
    let unknown = primary.post("/handoff?node=no-such-host");
    let said = String::from_utf8_lossy(&unknown.body).into_owned();
    assert!(unknown.status == 400 && said.contains("no-such-host"), "{}: {said}", unknown.status);
    assert_eq!(primary.post(&format!("/handoff?node={name}")).status, 200, "handed over");
    replica.wait_role("primary");
    primary.wait_role("replica");
    client.close();
    let mut other = Client::open(&replica.file("a.db"));
    grow(&mut other, 100);
    assert_eq!(other.value("SELECT n FROM m"), "2");
    other.close();
    primary.stop();
    replica.stop();
}

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
