//! `storage.durability = "archive"` on a mount: a commit returns when the archive has it,
//! and nothing else waits for that. The archive is the test's own (`support::chain`).

mod support;

#[path = "support/s3_server/mod.rs"]
mod s3_server;

use std::process::Command;
use std::time::Duration;

use litefs::db::FileKind;
use litefs::fuse::Passthrough;
use litefs::store::Role;
use litefs::words::DbName;
use rusqlite::Connection;

use s3_server::S3Server;
use support::chain::Chain;
use support::mounted::{BOTH, Client, Mounted};
use support::{Node, Scratch, Settings, can_mount, process, wait_for};

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

/// Every way in which SQLite commits: journal mode, synchronous, locking mode.
const WAYS: [(&str, &str, &str); 10] = [
    ("delete", "full", "normal"),
    ("delete", "off", "normal"),
    ("truncate", "normal", "normal"),
    ("truncate", "off", "normal"),
    ("persist", "full", "normal"),
    ("persist", "off", "exclusive"),
    ("delete", "full", "exclusive"),
    ("wal", "normal", "normal"),
    ("wal", "full", "normal"),
    ("wal", "off", "exclusive"),
];

fn connect(mounted: &Mounted, name: &str, (mode, sync, locking): (&str, &str, &str)) -> Client {
    let mut client = mounted.connect(name);
    client.rows(&format!("PRAGMA locking_mode = {locking}"));
    assert_eq!(client.value(&format!("PRAGMA journal_mode = {mode}")), mode);
    client.rows(&format!("PRAGMA synchronous = {sync}"));
    client
}

fn prepare(mounted: &Mounted, name: &str, way: (&str, &str, &str)) -> Client {
    let mut client = connect(mounted, name, way);
    client.rows("CREATE TABLE t (a, b)");
    client.rows("INSERT INTO t VALUES (0, randomblob(9000))");
    client
}

/// Waits until so many commits wait for the archive.
fn waiting(mounted: &Mounted, count: usize) {
    wait_for("the commits wait for the archive", || {
        (mounted.store.commits().unpublished() == count).then_some(())
    });
}

/// What the archive has is what the database is.
fn same(mounted: &Mounted, chain: &Chain, name: &str) {
    let scratch = mounted.scratch();
    let (theirs, ours) = (scratch.join("theirs.db"), scratch.join("ours.db"));
    let database = mounted.store.database(&DbName::new(name).expect("a name")).expect("it is there");
    database.current_pos().expect("capture");
    wait_for("everything to be in the archive", || {
        (mounted.store.commits().unpublished() == 0 && chain.pos(name) == database.pos()).then_some(())
    });
    chain.restore(name, &theirs);
    let copied = std::fs::copy(database.path(FileKind::Database), &ours).expect("copy");
    assert!(copied > 0);
    let journals = [FileKind::Wal, FileKind::Journal].map(|kind| database.path(kind));
    let wal = std::fs::metadata(&journals[0]).map_or(0, |file| file.len());
    let content = |path: &std::path::Path| {
        let connection = Connection::open(path).expect("open");
        let integrity: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
        assert_eq!(integrity, "ok", "{}", path.display());
        support::content::describe(&connection).expect("read")
    };
    assert_eq!(wal, 0, "the test closed its connections, or cut the WAL");
    let (ours, theirs) = (content(&ours), content(&theirs));
    assert_eq!(ours, theirs, "{name}: the archive has something else");
}

#[test]
fn a_commit_returns_when_the_archive_has_it_and_not_before() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::archive_first("returns", passthrough);
        let chain = Chain::new(&mounted.store);
        prepare(&mounted, "other.db", ("wal", "normal", "normal")).close();
        let mut other = mounted.connect("other.db");
        for (number, way) in WAYS.into_iter().enumerate() {
            let name = format!("{number}.db");
            let mut client = prepare(&mounted, &name, way);
            let mut reader = (way.0 == "wal" && way.2 == "normal").then(|| mounted.connect(&name));
            let before = mounted.txid(&name);
            chain.hold();
            client.begin("INSERT INTO t VALUES (1, randomblob(9000))");
            waiting(&mounted, 1);
            assert!(!client.answers(), "{way:?} returned before the archive had it");
            assert_eq!(mounted.txid(&name), before, "{way:?} counts before the archive has it");
            // Nothing else waits for that.
            assert_eq!(other.value("SELECT count(*) FROM t"), "1");
            assert_eq!(mounted.ok(&format!("cat $M/{name}-pos | cut -c1-16")), format!("{before:016x}"));
            if let Some(reader) = &mut reader {
                assert_eq!(reader.value("SELECT count(*) FROM t"), "1", "{way:?}");
            }
            assert_eq!(chain.put(), 1);
            client.answer().unwrap_or_else(|text| panic!("{way:?}: {text}"));
            assert_eq!(mounted.txid(&name), before + 1, "{way:?}");
            chain.go_on();
            client.rows("UPDATE t SET a = a + 1");
            client.rows("BEGIN");
            client.rows("DELETE FROM t");
            client.rows("ROLLBACK");
            assert_eq!(client.value("SELECT group_concat(a) FROM t"), "1,2", "{way:?}");
            assert_eq!(mounted.txid(&name), before + 2, "{way:?}");
            drop(reader);
            client.close();
            same(&mounted, &chain, &name);
        }
    }
}

/// Frames that a spill wrote are overwritten by the same transaction: SQLite then writes
/// frames without salts and checksums, and all their headers anew at the commit, the last of
/// them after its page (wal.c, walRewriteChecksums).
#[test]
fn a_commit_whose_frames_were_written_twice_returns_when_the_archive_has_it() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::archive_first("twice", passthrough);
        let chain = Chain::new(&mounted.store);
        for synchronous in ["off", "normal", "full"] {
            let name = format!("{synchronous}.db");
            let mut client = prepare(&mounted, &name, ("wal", synchronous, "normal"));
            let mut reader = mounted.connect(&name);
            client.rows("PRAGMA cache_size = 10");
            client.rows("PRAGMA cache_spill = 5");
            client.rows("BEGIN");
            for n in 1..4 {
                client.rows(&format!("UPDATE t SET a = {n} WHERE rowid = 1"));
                client.rows(
                    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 30) \
                             INSERT INTO t SELECT 9, randomblob(900) FROM c",
                );
            }
            client.rows("UPDATE t SET a = 4 WHERE rowid = 1");
            let before = mounted.txid(&name);
            chain.hold();
            client.begin("COMMIT");
            waiting(&mounted, 1);
            assert!(!client.answers(), "{synchronous}: returned before the archive had it");
            assert_eq!(reader.value("SELECT count(*) FROM t"), "1", "{synchronous}");
            assert_eq!(chain.put(), 1);
            client.answer().unwrap_or_else(|text| panic!("{synchronous}: {text}"));
            assert_eq!(mounted.txid(&name), before + 1, "{synchronous}");
            assert_eq!(reader.value("SELECT count(*) FROM t"), "91", "{synchronous}");
            chain.go_on();
            client.rows("UPDATE t SET a = 5 WHERE rowid = 1");
            reader.close();
            client.close();
            same(&mounted, &chain, &name);
        }
    }
}

#[test]
fn commits_of_many_databases_share_a_put() {
    needs_a_mount!();
    let mounted = Mounted::archive_first("group", Passthrough::Auto);
    let chain = Chain::new(&mounted.store);
    let prepare = |(number, way)| prepare(&mounted, &format!("{number}.db"), way);
    let mut clients: Vec<_> = WAYS.into_iter().enumerate().map(prepare).collect();
    for _ in 0..3 {
        chain.hold();
        let before = chain.puts();
        clients.iter_mut().for_each(|client| client.begin("INSERT INTO t VALUES (1, randomblob(9000))"));
        waiting(&mounted, clients.len());
        // A new database meanwhile is opened, and its files looked for.
        assert_ne!(mounted.sh("cat $M/none.db").1, 0);
        assert_eq!(chain.put(), clients.len());
        for client in &clients {
            client.answer().unwrap_or_else(|text| panic!("{text}"));
        }
        assert_eq!(chain.puts(), before + 1);
        chain.go_on();
    }
}

#[test]
fn a_commit_that_is_refused_is_not_there_and_the_connection_goes_on() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::archive_first("refused", passthrough);
        let chain = Chain::new(&mounted.store);
        for (number, way) in WAYS.into_iter().enumerate() {
            let name = format!("{number}.db");
            let mut client = prepare(&mounted, &name, way);
            client.rows("PRAGMA cache_size = 5");
            let before = mounted.txid(&name);
            // Before anybody took it, and under way.
            for taken in [false, true] {
                chain.hold();
                client.begin(&format!("INSERT INTO t SELECT 7, randomblob(3000) FROM {}", numbers(20)));
                waiting(&mounted, 1);
                if taken {
                    assert_eq!(mounted.store.commits().take(|_| true).len(), 1);
                }
                mounted.store.set_role(Role::Replica { primary: None });
                let text = client.answer().expect_err("it was not archived");
                assert!(text.contains("disk I/O error"), "{way:?}: {text}");
                if taken {
                    // It turns out that the archive does not have it.
                    mounted.store.commits().published();
                }
                mounted.store.set_role(Role::Primary);
                chain.go_on();
                assert_eq!(client.value("SELECT group_concat(a) FROM t"), "0", "{way:?}");
                assert_eq!(mounted.txid(&name), before, "{way:?}");
            }
            client.rows("INSERT INTO t VALUES (1, 1)");
            assert_eq!(client.value("SELECT group_concat(a) FROM t"), "0,1", "{way:?}");
            assert_eq!(client.value("PRAGMA integrity_check"), "ok");
            assert_eq!(mounted.txid(&name), before + 1, "{way:?}");
            client.close();
            same(&mounted, &chain, &name);
        }
    }
}

fn numbers(count: u32) -> String {
    format!(
        "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) SELECT n FROM c)"
    )
}

#[test]
fn a_writer_that_is_killed_while_it_waits_is_rolled_forward() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::archive_first("killed", passthrough);
        let chain = Chain::new(&mounted.store);
        for (number, way) in WAYS.into_iter().enumerate() {
            let name = format!("{number}.db");
            prepare(&mounted, &name, way).close();
            for round in 1..=3_u64 {
                let mut client = connect(&mounted, &name, way);
                // With somebody else there, and without.
                let mut other = (round > 1 && way.2 == "normal").then(|| mounted.connect(&name));
                if let Some(other) = &mut other {
                    other.rows("SELECT count(*) FROM t");
                }
                let before = mounted.txid(&name);
                chain.hold();
                client.rows("PRAGMA cache_size = 5");
                client.begin(&format!(
                    "INSERT INTO t SELECT {round}, randomblob(3000) FROM {} LIMIT {}",
                    numbers(30),
                    if round == 3 { 1 } else { 30 }
                ));
                waiting(&mounted, 1);
                // It cannot die before its request is answered.
                let killer = std::thread::spawn(move || client.kill());
                assert_eq!(chain.put(), 1);
                killer.join().expect("it dies");
                chain.go_on();
                let mut other = other.unwrap_or_else(|| mounted.connect(&name));
                let rows = if round == 3 { "1" } else { "30" };
                wait_for("what the archive has to be seen", || {
                    let seen = other.attempt(&format!("SELECT count(*) FROM t WHERE a = {round}"));
                    seen.is_ok_and(|seen| seen[0][0] == rows).then_some(())
                });
                assert_eq!(mounted.txid(&name), before + 1, "{way:?}");
                assert_eq!(other.value("PRAGMA integrity_check"), "ok");
                other.close();
            }
            let mut client = connect(&mounted, &name, way);
            client.rows("INSERT INTO t VALUES (9, 9)");
            client.close();
            same(&mounted, &chain, &name);
        }
    }
}

#[test]
fn killed_writers_among_others_leave_no_difference() {
    needs_a_mount!();
    let script = "\
import sqlite3, sys, random
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute('PRAGMA cache_size = 5')
n = 0
while True:
    n += 1
    db.execute('INSERT INTO t SELECT ?, randomblob(2000) FROM (SELECT 1 FROM t LIMIT ?)', (n, random.randint(1, 9)))
    if n % 7 == 0: db.execute('DELETE FROM t WHERE a < ?', (n - 20,))
    if n % 11 == 0: db.execute('PRAGMA wal_checkpoint(RESTART)').fetchall()
";
    for passthrough in BOTH {
        let mounted = Mounted::archive_first("killed-among", passthrough);
        let chain = Chain::new(&mounted.store);
        for mode in ["delete", "wal"] {
            let name = format!("{mode}.db");
            prepare(&mounted, &name, (mode, "normal", "normal")).close();
            let start = || {
                let mut command = std::process::Command::new("python3");
                command.args(["-c", script]).arg(mounted.path(&name)).spawn().expect("start a writer")
            };
            let mut writers: Vec<_> = (0..3).map(|_| start()).collect();
            let mut txid = mounted.txid(&name);
            for round in 0..25 {
                wait_for("the writers to get on", || (mounted.txid(&name) > txid + 3).then_some(()));
                txid = mounted.txid(&name);
                let victim = round % writers.len();
                writers[victim].kill().expect("kill");
                writers[victim].wait().expect("it dies");
                writers[victim] = start();
            }
            for mut writer in writers {
                writer.kill().expect("kill");
                writer.wait().expect("it dies");
            }
            let mut last = mounted.connect(&name);
            wait_for("the last writer's locks to go", || last.attempt("DELETE FROM t WHERE a = 1").ok());
            assert_eq!(last.value("PRAGMA integrity_check"), "ok");
            last.close();
            same(&mounted, &chain, &name);
        }
    }
}

#[test]
fn a_foreign_fsync_in_the_middle_of_a_transaction_commits_nothing() {
    needs_a_mount!();
    let mounted = Mounted::archive_first("foreign", Passthrough::Auto);
    let chain = Chain::new(&mounted.store);
    let mut client = prepare(&mounted, "a.db", ("delete", "full", "normal"));
    client.rows("PRAGMA cache_size = 5");
    client.rows("BEGIN");
    client.rows(&format!("INSERT INTO t SELECT 7, randomblob(3000) FROM {}", numbers(50)));
    let before = mounted.txid("a.db");
    mounted.ok("python3 -c 'import os, sys; f = os.open(sys.argv[1], os.O_RDWR); os.fsync(f)' $M/a.db");
    assert_eq!(mounted.txid("a.db"), before);
    client.rows("ROLLBACK");
    assert_eq!(client.value("SELECT count(*) FROM t"), "1");
    client.rows("INSERT INTO t VALUES (1, 1)");
    assert_eq!(mounted.txid("a.db"), before + 1);
    client.close();
    same(&mounted, &chain, "a.db");
}

#[test]
fn what_waits_while_the_mount_goes_does_not_hold_it() {
    needs_a_mount!();
    for way in [WAYS[0], WAYS[1], WAYS[7]] {
        let mounted = Mounted::archive_first("goes", Passthrough::Auto);
        let chain = Chain::new(&mounted.store);
        let mut client = prepare(&mounted, "a.db", way);
        chain.hold();
        client.begin("INSERT INTO t VALUES (1, 1)");
        waiting(&mounted, 1);
        mounted.mount.unmount(Duration::from_millis(50)).expect("unmount");
        assert!(client.answer().is_err(), "{way:?}: the application sees an error");
        client.kill();
    }
}

/// Inserts numbers, and prints each once SQLite has acknowledged it, until an error.
const INSERTS: &str = "\
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute('PRAGMA journal_mode=' + sys.argv[2])
db.execute('CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, b)')
n = db.execute('SELECT ifnull(max(n), 0) FROM t').fetchone()[0]
for n in range(n + 1, n + 1 + int(sys.argv[3])):
    try:
        db.execute('INSERT INTO t VALUES(?, randomblob(3000))', (n,))
    except sqlite3.Error as error:
        sys.exit(str(error))
    print(n, flush=True)
";

fn insert(node: &Node, mode: &str, count: u32) -> process::Output {
    let mut command = Command::new("python3");
    process::run(command.args(["-c", INSERTS]).arg(node.file("a.db")).args([mode, &count.to_string()]))
}

fn largest(node: &Node) -> u32 {
    let output = process::run(Command::new("sqlite3").arg(node.file("a.db")).arg("SELECT max(n) FROM t"));
    output
        .stdout
        .trim()
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {} {}", output.stdout, output.stderr))
}

fn archive_settings() -> Settings {
    Settings { storage: "durability = \"archive\"".to_owned(), sync_interval: "3600s", ..Settings::default() }
}

#[test]
fn a_daemon_killed_around_the_put_loses_nothing_that_was_acknowledged() {
    needs_a_mount!();
    for mode in ["delete", "wal"] {
        let scratch = Scratch::new("daemon-killed");
        let mut node = Node::new(scratch.path(), archive_settings());
        let mut acknowledged = 0;
        for point in ["archive.submit", "archive.archived", "archive.entered"] {
            for disk in ["kept", "lost"] {
                node.settings.env = vec![("LITEFS_FAULTS".to_owned(), format!("{point}=kill@4"))];
                node.start();
                let output = insert(&node, mode, 100);
                assert_ne!(output.code(), Some(0), "{mode} {point}: the daemon lived");
                let last = output.stdout.lines().last().and_then(|line| line.parse().ok());
                acknowledged = last.unwrap_or(acknowledged);
                node.wait_end();
                if disk == "lost" {
                    node.wipe_data();
                }
                node.settings.env.clear();
                node.start();
                let found = largest(&node);
                assert!(
                    found == acknowledged || found == acknowledged + 1,
                    "{mode} {point}, disk {disk}: {acknowledged} were acknowledged, {found} are there"
                );
                acknowledged = found;
                assert_eq!(insert(&node, mode, 2).code(), Some(0));
                acknowledged += 2;
                assert_eq!(largest(&node), acknowledged);
                node.stop();
                let mut verify = Command::new(env!("CARGO_BIN_EXE_litefs"));
                let verify = process::run(verify.args(["verify", "--deep", "--config"]).arg(node.config()));
                assert_eq!(verify.code(), Some(0), "{}{}", verify.stdout, verify.stderr);
            }
        }
    }
}

/// Commits a row after each pause; prints when each COMMIT began and when it returned.
const PAUSES: &str = "\
import sqlite3, sys, time
now = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute('PRAGMA journal_mode=' + sys.argv[2])
db.execute('CREATE TABLE t(n)')
for n in range(int(sys.argv[3])):
    time.sleep(0.06)
    start = now()
    db.execute('INSERT INTO t VALUES(?)', (n,))
    print(start, now())
";

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn a_commit_after_a_pause_is_one_request_and_in_the_archive_at_once() {
    needs_a_mount!();
    const ROWS: usize = 41;
    for (durability, interval) in [("async", "20ms"), ("archive", "3600s")] {
        let server = S3Server::start();
        let scratch = Scratch::new("one-request");
        let mut settings = Settings {
            storage: format!("durability = \"{durability}\""),
            sync_interval: interval,
            ..Settings::default()
        };
        settings.env =
            S3Server::environment().map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut node = Node::new(scratch.path(), settings).with_archive_url(&server.url("archive"));
        node.start();
        server.latency(Duration::from_millis(20));
        for mode in ["wal", "delete"] {
            server.take_stored();
            let name = format!("{mode}.db");
            let mut command = Command::new("python3");
            command.args(["-c", PAUSES]).arg(node.file(&name)).args([mode, &ROWS.to_string()]);
            let output = process::run(&mut command);
            assert_eq!(output.code(), Some(0), "{}", output.stderr);
            let commits: Vec<(f64, f64)> = output
                .stdout
                .lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(began, ended)| (began.parse().expect("seconds"), ended.parse().expect("seconds")))
                .collect();
            node.wait_archived(&[&name]);
            let stored: Vec<f64> = server
                .take_stored()
                .into_iter()
                .filter(|(key, _)| key.contains("/log/"))
                .map(|(_, time)| time.as_secs_f64())
                .collect();
            let there = |(began, _): &(f64, f64)| {
                let put = stored.iter().find(|time| **time > *began).expect("it is there now");
                put - began
            };
            let archived = median(commits.iter().map(there).collect());
            let returned = median(commits.iter().map(|(began, ended)| ended - began).collect());
            println!(
                "{durability}, {mode}: with 20 ms a request the median commit is in the archive after {:.1} ms, \
                 and returns after {:.1} ms",
                archived * 1000.0,
                returned * 1000.0
            );
            assert!(archived >= 0.020, "{durability}, {mode}: the storage cannot have had it: {archived}");
            // The switch to WAL, the table, the rows: a put each; on a machine so busy that
            // a commit falls into the put before, fewer.
            assert!(stored.len() <= ROWS + 3, "{durability}, {mode}: {} puts", stored.len());
            if durability == "archive" {
                assert!(stored.len() > ROWS, "{mode}: {} puts", stored.len());
                let early = commits.iter().find(|commit| commit.1 - commit.0 < there(commit));
                assert_eq!(early, None, "{mode}: it returned before the archive had it");
            }
        }
        node.stop();
    }
}
