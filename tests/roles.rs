//! Roles that change while nodes run: asked for, given away, let go when idle, lost.
//! The mounts stay, nothing that was acknowledged goes. Real processes, real mounts,
//! the storage lease.

#[path = "support/s3_server/mod.rs"]
mod s3_server;
mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::process::Signal;
use s3_server::{S3Server, Trouble};
use support::mounted::Client;
use support::node::{Node, Settings};
use support::scratch::Scratch;
use support::{PATIENCE, can_mount, process, wait_for};

/// Node `name` of a cluster whose archive is `base/archive`.
fn node(base: &Path, name: &str, lease: &'static str) -> Node {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let settings = Settings { lease, ..Settings::default() };
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&base.join("archive")).advertised()
}

fn connect(node: &Node, busy: Duration) -> Connection {
    let connection = Connection::open(node.file("app.db")).expect("open the database");
    connection.busy_timeout(busy).expect("set the timeout");
    connection
}

const PATIENT: Duration = Duration::from_secs(60);

fn count(connection: &Connection) -> Option<u32> {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).ok()
}

fn prepare(node: &Node, mode: &str) {
    let connection = connect(node, PATIENT);
    let sql = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(n INTEGER PRIMARY KEY, by TEXT)");
    connection.execute_batch(&sql).expect("make the table");
}

/// Asks a node's API to change the role; the reply's status and text.
fn post(node: &Node, path: &str) -> (u16, String) {
    let reply = node.post(path);
    (reply.status, String::from_utf8_lossy(&reply.body).into_owned())
}

const LEASE: &str = "type = \"storage\"\nttl = \"5s\"";

#[test]
fn promote_moves_the_lease_while_writers_wait() {
    let scratch = Scratch::new("roles-promote");
    let (mut first, mut second) =
        (node(scratch.path(), "first", LEASE), node(scratch.path(), "second", LEASE));
    first.start();
    first.wait_primary().expect("the first node is the primary");
    for mode in ["wal", "delete"] {
        let connection = connect(&first, PATIENT);
        connection.execute_batch("DROP TABLE IF EXISTS t").expect("drop");
        drop(connection);
        prepare(&first, mode);
        if second.is_running() {
            second.wait_role("replica");
        } else {
            second.start();
            second.wait_role("replica");
        }
        let writer = connect(&first, PATIENT);
        for n in 0..50 {
            writer.execute("INSERT INTO t VALUES(?1, 'first')", [n]).expect("the primary writes");
        }
        assert_eq!(post(&second, "/promote").0, 200, "the second node is the primary");
        second.wait_role("primary");
        first.wait_role("replica");
        // On the same connection of the same process: refused now.
        writer.busy_timeout(Duration::from_millis(1)).expect("set the timeout");
        let error = writer.execute("INSERT INTO t VALUES(1000, 'first')", []).expect_err("a replica refuses");
        assert!(
            matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::DatabaseBusy)
            ),
            "{mode}: {error}"
        );
        let other = connect(&second, PATIENT);
        assert_eq!(count(&other), Some(50), "{mode}: nothing is missing");
        other.execute("INSERT INTO t VALUES(50, 'second')", []).expect("the new primary writes");
        wait_for("the former primary follows", || (count(&writer) == Some(51)).then_some(()));
        drop(other);
        // And back.
        assert_eq!(post(&first, "/promote").0, 200, "the first node is the primary again");
        first.wait_role("primary");
        second.wait_role("replica");
        writer.busy_timeout(PATIENT).expect("set the timeout");
        writer.execute("INSERT INTO t VALUES(51, 'first')", []).expect("the same connection writes again");
    }
    let id = second.status()["nodeID"].as_str().expect("an id").to_owned();
    assert_eq!(post(&first, &format!("/handoff?node={id}")).0, 200, "handed over");
    second.wait_role("primary");
    assert_eq!(count(&connect(&second, PATIENT)), Some(52));
    first.stop();
    second.stop();
}

#[test]
fn no_write_is_lost_or_fails_while_the_lease_wanders() {
    let scratch = Scratch::new("roles-wander");
    let (mut first, mut second) =
        (node(scratch.path(), "first", LEASE), node(scratch.path(), "second", LEASE));
    first.start();
    first.wait_primary().expect("the first node is the primary");
    prepare(&first, "wal");
    first.wait_archived(&["app.db"]);
    second.start();
    let mut acknowledged = 0;
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        let (first, second) = (&first, &second);
        let wander = scope.spawn(move || {
            for round in 0..6 {
                let to = if round % 2 == 0 { second } else { first };
                assert_eq!(post(to, "/promote").0, 200, "round {round}");
                to.wait_role("primary");
            }
        });
        // The application writes where the primary is, as behind a proxy.
        let connections = [connect(first, PATIENT), connect(second, PATIENT)];
        for connection in &connections {
            connection.busy_timeout(Duration::ZERO).expect("set the timeout");
        }
        let mut n = 0;
        while !wander.is_finished() {
            let began = Instant::now();
            n += 1;
            wait_for("one of the nodes takes the write", || {
                let wrote = connections
                    .iter()
                    .any(|connection| connection.execute("INSERT INTO t VALUES(?1, '')", [n]).is_ok());
                wrote.then_some(())
            });
            longest = longest.max(began.elapsed());
            acknowledged += 1;
        }
        wander.join().expect("the lease wandered");
    });
    println!("{acknowledged} writes, the longest took {longest:?}");
    first.wait_role("primary");
    assert_eq!(
        count(&connect(&first, PATIENT)),
        Some(acknowledged),
        "every acknowledged write is there, once"
    );
    first.stop();
    second.stop();
}

#[test]
fn a_node_that_rests_asks_nothing_and_takes_the_lease_when_a_database_is_opened() {
    let scratch = Scratch::new("roles-rest");
    let mut only =
        node(scratch.path(), "only", "type = \"storage\"\nttl = \"2s\"\nrelease-on-idle = \"500ms\"");
    only.start();
    only.wait_primary().expect("it is the primary at first");
    prepare(&only, "wal");
    only.wait_archived(&["app.db"]);
    only.wait_role("replica");
    let lease = || std::fs::read_to_string(scratch.path().join("archive/lease.json")).expect("the lease");
    wait_for("the lease is let go", || lease().contains("released").then_some(()));
    let requests = |node: &Node| node.status()["archive"]["requests"].to_string();
    wait_for("it follows once more, then never", || {
        let before = (requests(&only), lease());
        std::thread::park_timeout(Duration::from_millis(1500));
        (before == (requests(&only), lease())).then_some(())
    });
    let connection = connect(&only, PATIENT);
    wait_for("it takes the lease again", || {
        connection.execute("INSERT INTO t VALUES(1, 'again')", []).is_ok().then_some(())
    });
    drop(connection);
    only.wait_archived(&["app.db"]);
    only.wait_role("replica");
    assert_eq!(count(&connect(&only, PATIENT)), Some(1));
    only.stop();
}

#[test]
fn stale_reads_are_served_where_asked_for_and_never_as_primary() {
    let scratch = Scratch::new("roles-stale");
    let server = S3Server::start();
    let mut only = node(scratch.path(), "only", LEASE).with_archive_url(&server.url("stale"));
    let environment = S3Server::environment();
    only.settings.env = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    only.settings.storage = "on-unreachable = \"serve-stale\"".to_owned();
    only.start();
    only.wait_primary().expect("it is the primary");
    prepare(&only, "delete");
    connect(&only, PATIENT).execute("INSERT INTO t VALUES(1, '')", []).expect("write");
    only.stop();
    for op in ["GetObject", "PutObject", "ListObjectsV2", "HeadObject"] {
        server.trouble(op, "", u64::MAX, Trouble::Refuse);
    }
    only.spawn();
    only.wait_role("replica");
    assert_eq!(count(&connect(&only, PATIENT)), Some(1), "reads are served");
    assert_eq!(only.get("/health").status, 503, "but it says that they are stale");
    let refused = connect(&only, Duration::ZERO).execute("INSERT INTO t VALUES(2, '')", []);
    assert!(refused.is_err(), "it must not write blind");
    server.heal();
    only.wait_primary().expect("it becomes the primary");
    connect(&only, PATIENT).execute("INSERT INTO t VALUES(2, '')", []).expect("write");
    only.stop();
}

#[test]
fn an_empty_node_whose_archive_is_out_of_reach_waits_and_has_everything_then() {
    let scratch = Scratch::new("roles-empty");
    let server = S3Server::start();
    let environment = S3Server::environment().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let on_s3 = |name: &str, lease| {
        let mut node = node(scratch.path(), name, lease).with_archive_url(&server.url("empty"));
        node.settings.env = environment.to_vec();
        node
    };
    let mut old = on_s3("old", LEASE);
    old.start();
    old.wait_primary().expect("it is the primary");
    prepare(&old, "wal");
    connect(&old, PATIENT).execute("INSERT INTO t VALUES(1, '')", []).expect("write");
    old.stop();
    for op in ["GetObject", "PutObject", "ListObjectsV2", "HeadObject"] {
        server.trouble(op, "", u64::MAX, Trouble::Refuse);
    }
    let mut empty = on_s3("empty", "type = \"storage\"\nttl = \"5s\"\npromote = true");
    empty.spawn();
    wait_for("it says what it waits for", || {
        empty.try_status()?["archive"]["error"].as_str().map(str::to_owned)
    });
    assert!(!empty.is_mounted(), "it serves nothing");
    assert_eq!(empty.get("/health").status, 503);
    server.heal();
    empty.wait_primary().expect("it becomes the primary");
    assert_eq!(rows(&empty), Some(vec![1]));
    empty.stop();
}

#[test]
fn a_node_that_is_no_candidate_follows_and_never_writes() {
    let scratch = Scratch::new("roles-reader");
    let mut first = node(scratch.path(), "first", LEASE);
    let mut reader = node(scratch.path(), "reader", "type = \"storage\"\nttl = \"5s\"\ncandidate = false");
    first.start();
    first.wait_primary().expect("the first node is the primary");
    prepare(&first, "wal");
    first.wait_archived(&["app.db"]);
    reader.start();
    reader.wait_role("replica");
    connect(&first, PATIENT).execute("INSERT INTO t VALUES(1, '')", []).expect("write");
    wait_for("the reader follows", || (count(&connect(&reader, PATIENT)) == Some(1)).then_some(()));
    first.stop();
    assert!(post(&reader, "/promote").1.contains("candidate"), "it may not be the primary");
    reader.wait_role("replica");
    assert_eq!(count(&connect(&reader, PATIENT)), Some(1), "it still reads");
    reader.stop();
}

#[test]
fn an_open_transaction_fails_when_the_lease_is_lost_and_the_process_lives() {
    let scratch = Scratch::new("roles-open");
    const SHORT: &str = "type = \"storage\"\nttl = \"2s\"";
    let (mut first, mut second) =
        (node(scratch.path(), "first", SHORT), node(scratch.path(), "second", SHORT));
    first.start();
    first.wait_primary().expect("the first node is the primary");
    prepare(&first, "delete");
    first.wait_archived(&["app.db"]);
    second.start();
    let connection = connect(&first, Duration::ZERO);
    connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(1, 'open')").expect("begin");
    first.signal(Signal::STOP);
    second.wait_primary().expect("the second node takes over");
    first.signal(Signal::CONT);
    wait_for("the commit fails", || connection.execute_batch("COMMIT").is_err().then_some(()));
    drop(connection);
    first.wait_role("replica");
    assert_eq!(count(&connect(&second, PATIENT)), Some(0), "it was never committed");
    wait_for("the first node reads what the second wrote", || {
        (count(&connect(&first, PATIENT)) == Some(0)).then_some(())
    });
    second.stop();
    first.wait_primary().expect("the first node is the primary again");
    first.stop();
}

#[test]
fn an_open_wal_transaction_that_still_commits_when_the_lease_is_lost_is_parked() {
    let scratch = Scratch::new("roles-open-wal");
    const SHORT: &str = "type = \"storage\"\nttl = \"2s\"";
    let (mut first, mut second) =
        (node(scratch.path(), "first", SHORT), node(scratch.path(), "second", SHORT));
    first.start();
    first.wait_primary().expect("the first node is the primary");
    prepare(&first, "wal");
    first.wait_archived(&["app.db"]);
    second.start();
    let mut worker = Client::open(&first.file("app.db"));
    worker.rows("BEGIN IMMEDIATE");
    worker.rows("INSERT INTO t VALUES(1, 'open')");
    first.signal(Signal::STOP);
    second.wait_primary().expect("the second node takes over");
    connect(&second, PATIENT).execute("INSERT INTO t VALUES(2, '')", []).expect("the second node writes");
    second.wait_archived(&["app.db"]);
    // The first node is asked for a fsync before it knows that it lost the lease, or after.
    worker.begin("COMMIT");
    first.signal(Signal::CONT);
    let committed = worker.answer().is_ok();
    worker.kill();
    first.wait_role("replica");
    wait_for("the first node has what the second wrote, and only that", || {
        let rows = rows(&first)?;
        (rows == [2]).then_some(())
    });
    let parked = std::fs::read_dir(first.data().join("parked")).map_or(0, Iterator::count);
    println!("committed {committed}, {parked} branches parked");
    assert!(parked >= usize::from(committed), "what was acknowledged is kept aside");
    second.stop();
    first.wait_primary().expect("the first node is the primary again");
    assert_eq!(rows(&first), Some(vec![2]));
    first.stop();
}

/// A node that has to start over as soon as it goes on, and the one that took over. What
/// `settle` keeps is there while the first one is still the primary.
fn overtaken<T>(base: &Path, settle: impl FnOnce(&Node) -> T) -> (Node, Node, T) {
    const SHORT: &str = "type = \"storage\"\nttl = \"2s\"";
    let (mut first, mut second) = (node(base, "first", SHORT), node(base, "second", SHORT));
    // What it commits stays local, and is to be parked.
    first.settings.sync_interval = "3600s";
    first.start();
    first.wait_primary().expect("the first node is the primary");
    prepare(&first, "wal");
    connect(&first, PATIENT).execute("INSERT INTO t VALUES(1, '')", []).expect("write");
    let kept = settle(&first);
    first.signal(Signal::STOP);
    second.start();
    second.wait_primary().expect("the second node takes over");
    let other = Connection::open(second.file("app.db")).expect("open the database");
    other.execute_batch("CREATE TABLE IF NOT EXISTS u(n); INSERT INTO u VALUES(1)").expect("write");
    drop(other);
    second.wait_archived(&["app.db"]);
    (first, second, kept)
}

#[test]
fn a_stop_while_a_node_starts_over_ends_it() {
    let scratch = Scratch::new("roles-over");
    let (mut first, mut second, reader) = overtaken(scratch.path(), |first| {
        // It keeps the mount for as long as an application may.
        let mut reader = Client::open(&first.file("app.db"));
        reader.rows("BEGIN");
        reader.rows("SELECT count(*) FROM t");
        reader
    });
    first.signal(Signal::CONT);
    wait_for("the first node starts over", || first.log().contains("starting over").then_some(()));
    first.signal(Signal::TERM);
    let status = first.wait_end();
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert_eq!(first.log().matches("litefs starts").count(), 1, "it did not start over");
    drop(reader);
    assert!(!is_immutable(&first.mount()), "its mount point is as it was");
    second.stop();
}

fn is_immutable(dir: &Path) -> bool {
    let dir = File::open(dir).expect("open the directory");
    ioctl_getflags(dir).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE))
}

/// As `chattr` does; false where that cannot be had.
fn set_immutable(dir: &Path, immutable: bool) -> bool {
    let dir = File::open(dir).expect("open the directory");
    let Ok(mut flags) = ioctl_getflags(&dir) else { return false };
    flags.set(IFlags::IMMUTABLE, immutable);
    ioctl_setflags(&dir, flags).is_ok()
}

/// Whether directories can be made immutable here; says loudly where they cannot.
fn can_be_immutable(scratch: &Scratch) -> bool {
    let can = set_immutable(scratch.path(), true) && set_immutable(scratch.path(), false);
    if !can {
        eprintln!("SKIPPED: no directory can be made immutable here");
    }
    can
}

/// Opens the database as an application does, making it where it is not, until `stop`:
/// how often it could not be opened in the bare directory. None may be made there.
fn intrude(path: &Path, stop: &AtomicBool) -> u64 {
    const FUSE: i64 = 0x6573_5546;
    let (mut refused, begin) = (0, Instant::now());
    while !stop.load(Ordering::Acquire) && begin.elapsed() < PATIENCE {
        match File::options().read(true).write(true).create(true).truncate(false).open(path) {
            Ok(file) => {
                let kind = rustix::fs::fstatfs(&file).map(|stat| stat.f_type);
                // One whose mount went meanwhile is ENOTCONN.
                assert!(kind.is_err() || kind == Ok(FUSE), "a plain file was made below the mount");
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => refused += 1,
            Err(_) => {}
        }
    }
    refused
}

#[test]
fn nothing_is_made_below_the_mount_while_a_node_starts_over() {
    for by_hand in [false, true] {
        let scratch = Scratch::new("roles-bare");
        if !can_be_immutable(&scratch) {
            return;
        }
        if by_hand {
            // What an administrator made so stays so.
            let mount_point = scratch.join("first/mnt");
            std::fs::create_dir_all(&mount_point).expect("create the mount point");
            assert!(set_immutable(&mount_point, true));
        }
        let (mut first, mut second, ()) = overtaken(scratch.path(), |_| ());
        let stop = AtomicBool::new(false);
        let path = first.file("app.db");
        let refused = std::thread::scope(|scope| {
            let intruder = scope.spawn(|| intrude(&path, &stop));
            first.signal(Signal::CONT);
            wait_for("it serves again or has ended", || {
                (first.log().matches("INFO serving dir").count() > 1 || first.has_ended()).then_some(())
            });
            stop.store(true, Ordering::Release);
            intruder.join().expect("nothing but the database in the mount")
        });
        assert!(refused > 0, "the mount was never away: this test shows nothing");
        let reader = connect(&first, PATIENT);
        let there = || reader.query_row("SELECT count(*) FROM u", [], |row| row.get::<_, u32>(0)).ok();
        wait_for("it serves again", || (there() == Some(1)).then_some(()));
        drop(reader);
        first.stop();
        assert_eq!(is_immutable(&first.mount()), by_hand);
        assert!(set_immutable(&first.mount(), false));
        second.stop();
    }
}

#[test]
fn a_node_that_ends_before_it_mounts_leaves_no_mount_point_shut() {
    let scratch = Scratch::new("roles-shut");
    if !can_be_immutable(&scratch) {
        return;
    }
    let mut only = node(scratch.path(), "only", LEASE);
    only.start();
    only.stop();
    // As a node that starts over leaves it.
    let shut = |node: &Node| {
        std::fs::write(node.data().join("mount-point-shut"), node.mount().as_os_str().as_bytes())
            .expect("mark");
        assert!(set_immutable(&node.mount(), true));
    };
    shut(&only);
    let taken = std::net::TcpListener::bind(only.api()).expect("take its port");
    only.spawn();
    assert_ne!(only.wait_end().code(), Some(0), "it cannot have its port");
    assert!(!is_immutable(&only.mount()));
    drop(taken);
    // As a crash leaves it.
    shut(&only);
    only.start();
    only.stop();
    assert!(!is_immutable(&only.mount()));
}

/// The keys in the table, if it is there.
fn rows(node: &Node) -> Option<Vec<u32>> {
    // Never made anew: the mount may be gone at this moment.
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(node.file("app.db"), flags).ok()?;
    let mut query = connection.prepare("SELECT n FROM t ORDER BY n").ok()?;
    let rows = query.query_map([], |row| row.get(0)).ok()?;
    rows.collect::<Result<_, _>>().ok()
}

/// A node whose commands note what it was when they began.
fn with_commands(base: &Path, name: &str) -> Node {
    let lease = format!("{LEASE}\nhostname = {name:?}").leak();
    let mut node = node(base, name, lease);
    let note = |what: &str| {
        let file = base.join(name).join(what);
        format!("[[exec]]\ncmd = [\"touch\", {file:?}]\n{what} = true\n")
    };
    node.settings.more = format!(
        "{}{}[[exec]]\ncmd = [\"sh\", \"-c\", \"trap 'exit 0' TERM; sleep 100000 & wait\"]\n",
        note("if-primary"),
        note("if-candidate")
    );
    node
}

#[test]
fn commands_applications_and_listeners_know_who_the_primary_is() {
    let scratch = Scratch::new("roles-known");
    let (mut first, mut second) =
        (with_commands(scratch.path(), "first"), with_commands(scratch.path(), "second"));
    first.start();
    first.wait_primary().expect("the first node is the primary");
    second.start();
    second.wait_role("replica");
    let noted = |name: &str, what: &str| scratch.path().join(name).join(what).exists();
    wait_for("the commands have run", || noted("second", "if-candidate").then_some(()));
    wait_for("the commands have run", || noted("first", "if-candidate").then_some(()));
    assert!(noted("first", "if-primary") && !noted("second", "if-primary"));
    let primary = |node: &Node| std::fs::read_to_string(node.file(".primary")).ok();
    let named = |node: &Node| primary(node).map(|name| name.trim().to_owned());
    wait_for("it is named", || (named(&second).as_deref() == Some("first")).then_some(()));
    assert_eq!(primary(&first), None, "on the primary there is no such file");
    let heard = listen(&second);
    let run = |node: &Node, flag: &str| {
        let mut command = process::litefs();
        process::run(command.args(["run", flag, "--url", &node.url(), "--", "sh", "-c", "exit 7"]))
    };
    assert_ne!(run(&second, "--if-primary").code(), Some(7), "it is not run there");
    assert_eq!(run(&first, "--if-primary").code(), Some(7));
    let promoted = run(&second, "--promote");
    assert_eq!(promoted.code(), Some(7), "{}", promoted.stderr);
    second.wait_role("primary");
    wait_for("it is named", || (named(&first).as_deref() == Some("second")).then_some(()));
    assert_eq!(primary(&second), None);
    wait_for("listeners are told", || {
        let text = heard.lock().expect("no panic");
        (text.contains("primaryChange") && text.contains("\"isPrimary\":true")).then_some(())
    });
    first.stop();
    second.stop();
}

/// What the node's events say, as they come.
fn listen(node: &Node) -> Arc<Mutex<String>> {
    let mut stream = std::net::TcpStream::connect(node.api()).expect("connect");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
    let heard = Arc::<Mutex<String>>::default();
    let text = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut block) {
            text.lock().expect("no panic").push_str(&String::from_utf8_lossy(&block[..len]));
        }
    });
    heard
}
