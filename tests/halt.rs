//! The halt lock: applications of a replica write through `<db>-lock` or `litefs run
//! --halt`. Real processes, real mounts. What they are told is committed is the chain's,
//! on both nodes, whoever is killed, stopped or wrong in between; everybody else waits,
//! and goes on after.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use support::mounted::Client;
use support::readers::{SCHEMA, grow, many};
use support::{Node, Scratch, Settings, can_mount, process, wait_for};

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

const DB: &str = "a.db";

/// As LiteFS's client libraries do it: an open file description lock on byte 72.
const LOCK: &str = r#"
import os, sys, fcntl, struct
try:
    fd = os.open(sys.argv[1], os.O_RDWR)
except OSError as e:
    print(e.errno, flush=True)
    sys.exit(0)
def lock(kind):
    fcntl.fcntl(fd, 38, struct.pack('hhqqi0q', kind, 0, 72, 1, 0))
lock(fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.readline()
lock(fcntl.F_UNLCK)
os.close(fd)
"#;

/// A process that has the halt lock.
struct Lock {
    child: Child,
    _stdin: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Lock {
    /// Begins to ask for the lock.
    fn ask(node: &Node) -> Lock {
        let mut command = Command::new("python3");
        command.args(["-u", "-c", LOCK]).arg(node.file(&format!("{DB}-lock")));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start an application");
        let stdin = child.stdin.take().expect("its standard input");
        let said = BufReader::new(child.stdout.take().expect("its standard output"));
        Lock { child, _stdin: stdin, said }
    }

    /// What came of it: `held`, or the number of the error.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("its answer");
        line.trim().to_owned()
    }

    /// Has it.
    fn get(node: &Node) -> Lock {
        let mut lock = Lock::ask(node);
        assert_eq!(lock.answer(), "held");
        lock
    }

    /// Gives it back and ends.
    fn give_back(mut self) {
        drop(self._stdin);
        let status = process::wait(&mut self.child);
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }

    /// kill -9.
    fn kill(mut self) {
        self.child.kill().expect("kill it");
        self.child.wait().expect("it is gone");
    }
}

fn node(scratch: &Scratch, name: &str, settings: Settings) -> Node {
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&scratch.join("archive")).advertised()
}

/// The archive comes an hour too late for everything, unless commits wait for it.
fn settings(passthrough: bool) -> Settings {
    let lease = "type = \"storage\"\nttl = \"10s\"";
    Settings { lease, sync_interval: "3600s", passthrough, ..Settings::default() }
}

struct Pair {
    _scratch: Scratch,
    primary: Node,
    replica: Node,
}

impl Pair {
    fn with(label: &str, [of_primary, of_replica]: [Settings; 2]) -> Pair {
        let scratch = Scratch::new(label);
        let mut primary = node(&scratch, "primary", of_primary);
        let mut replica = node(&scratch, "replica", of_replica);
        primary.start();
        primary.wait_primary().expect("the primary serves");
        replica.start();
        replica.wait_role("replica");
        Pair { _scratch: scratch, primary, replica }
    }

    fn new(label: &str, passthrough: bool) -> Pair {
        Pair::with(label, [settings(passthrough), settings(passthrough)])
    }

    /// A database on both, in this mode.
    fn begin(&self, mode: &str) {
        let mut client = Client::open(&self.primary.file(DB));
        client.rows(&format!("PRAGMA journal_mode = {mode}"));
        SCHEMA.split(';').for_each(|sql| drop(client.rows(sql)));
        grow(&mut client, 5000);
        client.close();
        self.wait_same();
    }

    /// Waits until both are where the primary is now.
    fn wait_same(&self) {
        let pos = self.primary.pos(DB);
        wait_for(&format!("{DB} is at {pos} on the replica"), || {
            (position(&self.replica)? == pos).then_some(())
        });
    }

    /// Both have the same bytes, which are a database.
    fn same(&self) {
        self.wait_same();
        let bytes = |node: &Node| node.get(&format!("/export?name={DB}")).body;
        let (here, there) = (bytes(&self.primary), bytes(&self.replica));
        assert!(here.len() > 512 && here == there, "bytes of {DB} differ");
        for node in [&self.primary, &self.replica] {
            let mut reader = Client::open(&node.file(DB));
            assert_eq!(reader.value("PRAGMA integrity_check"), "ok");
            reader.close();
            assert_eq!(node.status()["parked"], 0, "a branch was parked");
        }
    }

    /// The application on the primary writes again, and the replica's does not.
    fn goes_on(&self) {
        let mut client = Client::open(&self.primary.file(DB));
        wait_for("the primary's application writes", || {
            client.attempt("UPDATE m SET n = n + 1").is_ok().then_some(())
        });
        client.close();
        // Whoever opens it while it is applied finds it locked (rollback modes).
        self.wait_same();
        let mut other = Client::open(&self.replica.file(DB));
        assert!(other.attempt("UPDATE m SET n = n + 1").is_err(), "a replica wrote without the lock");
        other.close();
    }

    fn stop(mut self) {
        self.replica.stop();
        self.primary.stop();
    }
}

fn position(node: &Node) -> Option<String> {
    let status = node.try_status()?;
    let row = status["databases"].as_array()?.iter().find(|row| row["name"] == DB)?.clone();
    row["pos"].as_str().map(str::to_owned)
}

fn count(node: &Node) -> u32 {
    let mut reader = Client::open(&node.file(DB));
    let count = reader.value("SELECT count(*) FROM t").parse().expect("a number");
    reader.close();
    count
}

/// Commits on a replica that has the lock, on a connection from before and on a new one:
/// each is the primary's when it returns.
fn writes(mode: &str, sync: &str, passthrough: bool) {
    let pair = Pair::new(&format!("halt-{mode}-{sync}-{passthrough}"), passthrough);
    pair.begin(mode);
    let mut before = Client::open(&pair.replica.file(DB));
    assert_eq!(before.value("SELECT count(*) FROM t"), "1");
    assert!(before.attempt("INSERT INTO t VALUES (1)").is_err(), "it has no lock yet");
    let mut other = Client::open(&pair.primary.file(DB));
    let lock = Lock::get(&pair.replica);
    let refused = other.attempt("INSERT INTO t VALUES (1)").expect_err("the primary's wait");
    assert!(refused.contains("locked"), "{refused}");
    let mut fresh = Client::open(&pair.replica.file(DB));
    for client in [&mut before, &mut fresh] {
        client.rows(&format!("PRAGMA synchronous = {sync}"));
        for len in [100, 9000, 40_000] {
            grow(client, len);
            let at = position(&pair.replica);
            assert_eq!(position(&pair.primary), at, "{mode}: the primary does not have it");
        }
        many(client, 300, 3000);
        client.rows("BEGIN");
        client.rows("DELETE FROM t");
        client.rows("ROLLBACK");
        client.rows("VACUUM");
    }
    assert_eq!(position(&pair.primary), position(&pair.replica));
    assert_eq!(other.value("SELECT count(*) FROM t"), before.value("SELECT count(*) FROM t"));
    lock.give_back();
    wait_for("the replica does not write any more", || before.attempt("UPDATE m SET n = n + 1").err());
    wait_for("the primary's application writes", || {
        other.attempt("INSERT INTO t VALUES ('x')").is_ok().then_some(())
    });
    other.rows("UPDATE m SET n = n + 1, total = total + 1");
    pair.same();
    // And again.
    let lock = Lock::get(&pair.replica);
    grow(&mut fresh, 700);
    lock.give_back();
    for client in [before, fresh, other] {
        client.close();
    }
    pair.goes_on();
    pair.same();
    pair.stop();
}

#[test]
fn a_replica_in_wal_mode_writes_the_chain_under_the_lock() {
    needs_a_mount!();
    for (sync, passthrough) in [("normal", true), ("full", true), ("full", false)] {
        writes("wal", sync, passthrough);
    }
}

#[test]
fn a_replica_in_the_rollback_modes_writes_the_chain_under_the_lock() {
    needs_a_mount!();
    for (mode, sync, passthrough) in [
        ("delete", "full", true),
        ("delete", "off", true),
        ("truncate", "normal", true),
        ("persist", "full", true),
        ("persist", "off", true),
        ("delete", "full", false),
    ] {
        writes(mode, sync, passthrough);
    }
}

#[test]
fn journal_mode_and_page_size_change_under_the_lock() {
    needs_a_mount!();
    let pair = Pair::new("halt-modes", true);
    pair.begin("delete");
    for step in ["PRAGMA journal_mode = wal", "PRAGMA journal_mode = delete"] {
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        for step in ["PRAGMA page_size = 8192", "VACUUM", step] {
            client.rows(step);
            grow(&mut client, 100);
            assert_eq!(position(&pair.primary), position(&pair.replica), "{step}");
            let mut other = Client::open(&pair.primary.file(DB));
            assert!(other.attempt("INSERT INTO t VALUES (1)").is_err(), "{step}: the primary does not wait");
            other.close();
        }
        client.close();
        lock.give_back();
        pair.goes_on();
        pair.same();
    }
    pair.stop();
}

#[test]
fn one_application_after_the_other_has_the_lock_and_on_the_primary_it_is_nothing() {
    needs_a_mount!();
    let pair = Pair::new("halt-turns", true);
    pair.begin("wal");
    let first = Lock::get(&pair.replica);
    let mut second = Lock::ask(&pair.replica);
    // Any number of applications of the node write under it.
    let mut clients = [0, 1].map(|_| Client::open(&pair.replica.file(DB)));
    clients.iter_mut().for_each(|client| grow(client, 100));
    first.give_back();
    assert_eq!(second.answer(), "held");
    clients.iter_mut().for_each(|client| grow(client, 100));
    second.give_back();
    clients.into_iter().for_each(Client::close);
    let nothing = Lock::get(&pair.primary);
    pair.goes_on();
    nothing.give_back();
    // Whoever only reads it has nothing.
    let read = std::fs::read(pair.replica.file(&format!("{DB}-lock"))).expect("read it");
    assert!(read.is_empty());
    pair.goes_on();
    pair.same();
    pair.stop();
}

#[test]
fn a_command_runs_under_the_lock_and_its_exit_code_is_ours() {
    needs_a_mount!();
    let pair = Pair::new("halt-run", true);
    pair.begin("wal");
    let script = "import sqlite3, sys\n\
                  db = sqlite3.connect(sys.argv[1])\n\
                  db.execute('UPDATE m SET n = n + 1')\n\
                  db.commit()\n\
                  sys.exit(7)";
    let run = |node: &Node, db: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        command.args(["run", "--halt", db, "--url", &node.url(), "--", "python3", "-c", script]);
        process::run(command.arg(node.file(DB)))
    };
    let before = pair.primary.pos(DB);
    assert_eq!(run(&pair.replica, DB).code(), Some(7));
    assert_ne!(pair.primary.pos(DB), before, "it wrote");
    pair.goes_on();
    assert_eq!(run(&pair.primary, DB).code(), Some(7), "the primary needs no lock");
    let unknown = run(&pair.replica, "none.db");
    assert_eq!(unknown.code(), Some(1), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("none.db"), "{}", unknown.stderr);
    pair.same();
    pair.stop();
}

#[test]
fn an_application_that_is_killed_gives_the_lock_back() {
    needs_a_mount!();
    for mode in ["wal", "delete"] {
        let pair = Pair::new(&format!("halt-killed-{mode}"), true);
        pair.begin(mode);
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        grow(&mut client, 100);
        client.rows("BEGIN");
        client.rows("INSERT INTO t VALUES ('never')");
        lock.kill();
        pair.replica_is_told("the halt lock ends");
        let failed = client.attempt("COMMIT").expect_err("the lock is given back");
        assert!(failed.contains("I/O") || failed.contains("readonly"), "{failed}");
        client.close();
        pair.goes_on();
        pair.same();
        assert_eq!(count(&pair.primary), 2);
        // In the middle of a transaction, with the lock.
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        client.rows("PRAGMA cache_size = 5");
        client.rows("BEGIN");
        client.rows("INSERT INTO t SELECT randomblob(3000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT i FROM n)");
        client.kill();
        let mut next = Client::open(&pair.replica.file(DB));
        grow(&mut next, 100);
        next.close();
        lock.give_back();
        pair.goes_on();
        pair.same();
        assert_eq!(count(&pair.primary), 3);
        pair.stop();
    }
}

impl Pair {
    fn replica_is_told(&self, what: &str) {
        wait_for(what, || self.replica.log().contains(what).then_some(()));
    }
}

/// The replica's daemon dies at a step of a commit under the lock; what its application was
/// told is there, and nothing else but perhaps the commit under way.
fn replica_dies(mode: &str, point: &str) {
    let label = format!("halt-{mode}-{point}");
    let faulty =
        Settings { env: vec![("LITEFS_FAULTS".to_owned(), format!("{point}=kill@3"))], ..settings(true) };
    let mut pair = Pair::with(&label, [settings(true), faulty]);
    pair.begin(mode);
    let lock = Lock::get(&pair.replica);
    let mut client = Client::open(&pair.replica.file(DB));
    let mut told = 1;
    while client.attempt("INSERT INTO t VALUES (randomblob(5000))").is_ok() {
        told += 1;
        assert!(told < 10, "{point} is never passed");
    }
    pair.replica.wait_end();
    client.kill();
    lock.kill();
    pair.replica.settings.env.clear();
    pair.replica.start();
    pair.replica.wait_role("replica");
    pair.goes_on();
    pair.same();
    let there = count(&pair.primary);
    assert!((told..=told + 1).contains(&there), "{label}: {told} acknowledged, {there} there");
    pair.stop();
}

#[test]
fn a_replica_that_dies_in_a_commit_under_the_lock_comes_back_to_the_chain() {
    needs_a_mount!();
    for mode in ["wal", "delete"] {
        for point in ["archive.submit", "archive.archived", "archive.entered"] {
            replica_dies(mode, point);
        }
    }
}

/// The primary dies at a step of taking a commit.
fn primary_dies(mode: &str, point: &str) {
    let label = format!("halt-primary-{mode}-{point}");
    let faulty =
        Settings { env: vec![("LITEFS_FAULTS".to_owned(), format!("{point}=kill@3"))], ..settings(true) };
    let mut pair = Pair::with(&label, [faulty, settings(true)]);
    pair.begin(mode);
    let lock = Lock::get(&pair.replica);
    let mut client = Client::open(&pair.replica.file(DB));
    let mut told = 1;
    let failed = loop {
        match client.attempt("INSERT INTO t VALUES (randomblob(5000))") {
            Ok(_) => told += 1,
            Err(text) => break text,
        }
        assert!(told < 10, "{point} is never passed");
    };
    assert!(failed.contains("I/O"), "{failed}");
    pair.primary.wait_end();
    // It is as if it had never begun, for now, and the connection goes on.
    assert_eq!(client.value("SELECT count(*) FROM t"), told.to_string());
    lock.give_back();
    pair.primary.settings.env.clear();
    pair.primary.start();
    wait_for("one of them is the primary", || {
        [&pair.primary, &pair.replica].into_iter().any(Node::is_primary).then_some(())
    });
    if !pair.primary.is_primary() {
        std::mem::swap(&mut pair.primary, &mut pair.replica);
    }
    pair.replica.wait_role("replica");
    client.close();
    let there = wait_for("the primary has what was acknowledged", || Some(count(&pair.primary)));
    assert!((told..=told + 1).contains(&there), "{label}: {told} acknowledged, {there} there");
    pair.goes_on();
    pair.wait_same();
    assert_eq!(count(&pair.replica), there);
    pair.stop();
}

#[test]
fn a_primary_that_dies_in_a_commit_under_the_lock_forks_nothing() {
    needs_a_mount!();
    for (mode, point) in [
        ("wal", "apply.frames"),
        ("wal", "apply.logged"),
        ("wal", "apply.published"),
        ("delete", "apply.prepared"),
        ("delete", "apply.written"),
        ("delete", "apply.told"),
    ] {
        primary_dies(mode, point);
    }
}

#[test]
fn a_replica_that_is_not_heard_of_loses_the_lock_and_its_commit_fails() {
    needs_a_mount!();
    for mode in ["wal", "delete"] {
        let pair = Pair::new(&format!("halt-expired-{mode}"), true);
        pair.begin(mode);
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        grow(&mut client, 100);
        client.rows("BEGIN");
        client.rows("INSERT INTO t VALUES ('never')");
        pair.replica.signal(rustix::process::Signal::STOP);
        let mut other = Client::open(&pair.primary.file(DB));
        wait_for("the primary's application writes", || {
            other.attempt("INSERT INTO t VALUES (randomblob(100))").is_ok().then_some(())
        });
        assert!(pair.primary.log().contains("is not heard of: it is lost"));
        pair.replica.signal(rustix::process::Signal::CONT);
        let failed = client.attempt("COMMIT").expect_err("the lock is lost");
        assert!(failed.contains("I/O") || failed.contains("readonly"), "{failed}");
        // The connection goes on, and the file that it has open is worth nothing.
        pair.wait_same();
        // What brought it there may still have the database alone.
        client.rows("PRAGMA busy_timeout = 60000");
        assert_eq!(client.value("SELECT count(*) FROM t"), "3");
        assert!(client.attempt("INSERT INTO t VALUES (1)").is_err());
        lock.give_back();
        client.close();
        other.close();
        pair.goes_on();
        pair.same();
        pair.stop();
    }
}

#[test]
fn the_lock_ends_when_the_primary_changes_and_the_new_one_writes() {
    needs_a_mount!();
    for mode in ["wal", "delete"] {
        let mut pair = Pair::new(&format!("halt-promoted-{mode}"), true);
        pair.begin(mode);
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        grow(&mut client, 100);
        let reply = pair.replica.post("/promote");
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        std::mem::swap(&mut pair.primary, &mut pair.replica);
        pair.replica.wait_role("replica");
        wait_for("the new primary's application writes", || {
            client.attempt("UPDATE m SET n = n + 1").is_ok().then_some(())
        });
        lock.give_back();
        pair.goes_on();
        client.close();
        pair.same();
        // The former primary holds the lock of the new one.
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        grow(&mut client, 100);
        client.close();
        lock.give_back();
        pair.goes_on();
        pair.same();
        pair.stop();
    }
}

#[test]
fn a_connection_whose_commits_would_not_be_seen_keeps_the_lock_from_being_given() {
    needs_a_mount!();
    let mut pair = Pair::new("halt-unseen", true);
    pair.begin("wal");
    let mut old = Client::open(&pair.primary.file(DB));
    assert_eq!(old.value("SELECT count(*) FROM t"), "1");
    assert_eq!(pair.replica.post("/promote").status, 200);
    std::mem::swap(&mut pair.primary, &mut pair.replica);
    pair.replica.wait_role("replica");
    let mut lock = Lock::ask(&pair.replica);
    assert_eq!(lock.answer(), libc_ebusy());
    lock.kill();
    assert!(pair.replica.log().contains("close those connections"));
    old.close();
    // The kernel tells of a closed file some time after close(2).
    let lock = wait_for("the connection is closed for the daemon, too", || {
        let mut lock = Lock::ask(&pair.replica);
        if lock.answer() == "held" {
            return Some(lock);
        }
        lock.kill();
        None
    });
    let mut client = Client::open(&pair.replica.file(DB));
    grow(&mut client, 100);
    client.close();
    lock.give_back();
    pair.goes_on();
    pair.same();
    pair.stop();
}

fn libc_ebusy() -> String {
    rustix::io::Errno::BUSY.raw_os_error().to_string()
}

#[test]
fn a_commit_under_the_lock_returns_when_the_archive_has_it_where_commits_wait_for_that() {
    needs_a_mount!();
    let archive = || Settings { storage: "durability = \"archive\"".to_owned(), ..settings(true) };
    let pair = Pair::with("halt-archive", [archive(), archive()]);
    for mode in ["wal", "delete"] {
        pair.begin_again(mode);
        let lock = Lock::get(&pair.replica);
        let mut client = Client::open(&pair.replica.file(DB));
        for _ in 0..3 {
            grow(&mut client, 100);
            let pos = position(&pair.replica).expect("a position");
            let status = pair.primary.status();
            let row = status["databases"].as_array().and_then(|rows| rows.first()).cloned();
            assert_eq!(row.map(|row| row["archived"].clone()), Some(Value::from(pos)), "{mode}");
        }
        client.close();
        lock.give_back();
        pair.goes_on();
        pair.same();
    }
    pair.stop();
}

impl Pair {
    /// As `begin`, for a database that may be there.
    fn begin_again(&self, mode: &str) {
        if position(&self.primary).is_none() {
            return self.begin(mode);
        }
        let mut client = Client::open(&self.primary.file(DB));
        wait_for("nobody else is in the database", || {
            (client.attempt(&format!("PRAGMA journal_mode = {mode}")).ok()?.concat() == [mode]).then_some(())
        });
        client.close();
        self.wait_same();
    }
}

/// A request of a replica, by hand: its status and text.
fn asked(node: &Node, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let addr = node.url().trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&addr).expect("connect");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("a timeout");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("send");
    stream.write_all(body).expect("send");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, reply)
}

#[test]
fn whoever_does_not_have_the_lock_is_refused_and_changes_nothing() {
    needs_a_mount!();
    let pair = Pair::new("halt-wrong", true);
    pair.begin("wal");
    let lock = Lock::get(&pair.replica);
    let before = pair.primary.status()["databases"].clone();
    let info: Value = serde_json::from_slice(&pair.replica.get("/info").body).expect("info");
    let text = |name: &str| info[name].as_str().expect("an id").to_owned();
    let (replica, cluster) = (text("nodeID"), text("clusterID"));
    let of = |node: &str, cluster: &str| format!("Litefs-Id: {node}\r\nLitefs-Cluster-Id: {cluster}\r\n");
    let right = of(&replica, &cluster);
    let id = format!("/halt?name={DB}&id=0000000000000001");
    let tx = format!("/tx?name={DB}&id=0000000000000001&post={}", pair.primary.pos(DB));
    for (method, path) in [("POST", format!("{id}&renew=true")), ("DELETE", id.clone()), ("POST", tx.clone())]
    {
        let (status, text) = asked(&pair.primary, method, &path, &right, b"garbage");
        assert_eq!(status, 409, "{method} {path}: {text}");
        assert!(text.contains("is held by node"), "{text}");
    }
    let (status, text) = asked(&pair.primary, "POST", &id, "", b"");
    assert_eq!(status, 400, "{text}");
    for wrong in [of(&replica, "00000000000000ff"), of("none", &cluster)] {
        let (status, text) = asked(&pair.primary, "POST", &id, &wrong, b"");
        assert!(status == 400 || status == 409, "{text}");
    }
    let (status, text) = asked(&pair.primary, "POST", "/halt?name=none.db&id=0000000000000001", &right, b"");
    assert_eq!(status, 404, "{text}");
    let (status, text) = asked(&pair.replica, "POST", &id, &of("00000000000000aa", &cluster), b"");
    assert_eq!(status, 503, "a replica gives none: {text}");
    assert_eq!(pair.primary.status()["databases"], before, "nothing changed");
    let mut client = Client::open(&pair.replica.file(DB));
    grow(&mut client, 100);
    client.close();
    lock.give_back();
    pair.goes_on();
    // Another one by hand: garbage and what does not continue the database is refused.
    let stranger = of("00000000000000aa", &cluster);
    let (status, text) = asked(&pair.primary, "POST", &id, &stranger, b"");
    assert_eq!(status, 200, "{text}");
    let before = pair.primary.pos(DB);
    for body in [&b"garbage"[..], b""] {
        let (status, text) = asked(&pair.primary, "POST", &tx, &stranger, body);
        assert_eq!(status, 400, "{text}");
    }
    let (status, text) = asked(&pair.primary, "DELETE", &id, &stranger, b"");
    assert_eq!(status, 200, "{text}");
    assert_eq!(pair.primary.pos(DB), before);
    pair.goes_on();
    pair.same();
    pair.stop();
}

#[test]
fn a_large_transaction_crosses_under_the_lock() {
    needs_a_mount!();
    let pair = Pair::new("halt-large", true);
    pair.begin("wal");
    let lock = Lock::get(&pair.replica);
    let mut client = Client::open(&pair.replica.file(DB));
    client.rows("INSERT INTO t SELECT randomblob(1000000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT i FROM n)");
    assert_eq!(position(&pair.primary), position(&pair.replica));
    client.close();
    lock.give_back();
    pair.goes_on();
    pair.same();
    pair.stop();
}
