//! A node on S3: what it asks for, how soon it serves, and what it says when S3
//! refuses.

#[path = "support/s3_server/mod.rs"]
mod s3_server;
mod support;

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use litefs::object::{ObjectStore as _, S3Store};
use litefs::words::{Clock as _, SystemClock};
use rusqlite::Connection;
use rustix::process::Signal;
use s3_server::{ANY, Quirks, S3Server, Trouble};
use support::drivers::{self, Driver};
use support::line::Line;
use support::{Node, Outside, Scratch, Settings, can_mount, process, wait_for};

const ALWAYS: u64 = u64::MAX;
const STATIC: &str = "type = \"static\"";
const STORAGE: &str = "type = \"storage\"\nttl = \"3s\"";
/// Held for longer than a busy machine takes for a few transactions.
const LONGER: &str = "type = \"storage\"\nttl = \"10s\"";
/// Holds the lease only while there is something to write.
const RESTING: &str = "type = \"storage\"\nttl = \"3s\"\nrelease-on-idle = \"5s\"";

fn environment() -> Vec<(String, String)> {
    S3Server::environment().map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// A node `name` whose archive is at `url`.
fn node(scratch: &Scratch, name: &str, lease: &'static str, url: &str) -> Node {
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    let settings = Settings { lease, env: environment(), ..Settings::default() };
    Node::new(&dir, settings).with_archive_url(url)
}

/// A part of a bucket of its own: on MinIO, or where there is none on the test's own server.
struct Bucket {
    url: String,
    env: Vec<(String, String)>,
    _server: Option<S3Server>,
}

impl Bucket {
    fn new(scratch: &Scratch) -> Bucket {
        let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
        match Outside::minio() {
            Some(minio) => {
                Bucket { url: minio.url_of(&prefix), env: minio.environment().to_vec(), _server: None }
            }
            None => {
                let server = S3Server::start();
                Bucket { url: server.url(&prefix), env: environment(), _server: Some(server) }
            }
        }
    }

    /// A node there, over a line of its own.
    fn node(&self, scratch: &Scratch, name: &str, lease: &'static str) -> (Node, Line) {
        let line = Line::to(&Line::end_of(&self.url));
        let mut node = node(scratch, name, lease, &line.url(&self.url));
        node.settings.env.clone_from(&self.env);
        (node, line)
    }

    /// Runs `litefs` on it.
    fn litefs(&self, args: &[&str]) -> process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litefs"));
        process::run(command.args(args).args(["--storage", &self.url]).envs(self.env.iter().cloned()))
    }
}

/// The keys in the server's bucket.
fn keys(server: &S3Server) -> Vec<String> {
    let store = S3Store::new(server.place("")).expect("a store");
    store.list("", None).expect("list").into_iter().map(|info| info.key).collect()
}

fn insert(node: &Node, numbers: std::ops::Range<u32>) {
    let sql: String = numbers.map(|n| format!("INSERT INTO t VALUES({n});")).collect();
    let sql = format!("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY);{sql}");
    Driver::Program.exec(&node.file("app.db"), &sql);
}

fn count(node: &Node) -> String {
    Driver::Program.query(&node.file("app.db"), "SELECT count(*) FROM t").trim().to_owned()
}

/// A web server that is no S3.
fn web_server() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 16\r\n\r\n<p>Welcome!</p>\n\n",
            );
        }
    });
    address.to_string()
}

#[test]
fn a_storage_that_refuses_ends_the_start_with_what_to_do_and_nothing_is_written() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    type Spoil = fn(&S3Server, &mut Node);
    let cases: [(&str, Spoil, &str); 8] = [
        (
            "bucket",
            |server, node| node.set_archive_url(&server.url("p").replace("test-bucket", "none")),
            "create the bucket",
        ),
        ("secret", |_, node| node.settings.env[1].1 = "else".to_owned(), "check AWS_SECRET_ACCESS_KEY"),
        ("key", |_, node| node.settings.env[0].1 = "else".to_owned(), "check AWS_ACCESS_KEY_ID"),
        (
            "expired",
            |server, _| server.trouble(ANY, "", ALWAYS, Trouble::Deny("ExpiredToken")),
            "have expired",
        ),
        (
            "skewed",
            |server, _| server.trouble(ANY, "", ALWAYS, Trouble::Deny("RequestTimeTooSkewed")),
            "clock is off",
        ),
        (
            "web",
            |_, node| node.set_archive_url(&format!("s3://test-bucket/p?endpoint=http://{}", web_server())),
            "check the endpoint",
        ),
        (
            "ignores",
            |server, _| server.quirks(Quirks { ignores_conditions: true, ..Quirks::default() }),
            "lease.type = \"static\"",
        ),
        (
            "refuses",
            |server, _| server.quirks(Quirks { refuses_conditions: true, ..Quirks::default() }),
            "lease.type = \"static\"",
        ),
    ];
    let scratch = Scratch::new("s3-refusals");
    for (name, spoil, words) in cases {
        let server = S3Server::start();
        let mut node = node(&scratch, name, STORAGE, &server.url("p"));
        spoil(&server, &mut node);
        node.spawn();
        let code = node.wait_end().code();
        let log = node.log();
        assert_eq!(code, Some(1), "{name}: {log}");
        assert!(log.contains(words), "{name}: {log}");
        assert!(!node.is_mounted());
        server.heal();
        server.quirks(Quirks::default());
        assert_eq!(keys(&server), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn missing_credentials_end_the_start_within_seconds_with_the_chain() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-no-keys");
    let server = S3Server::start();
    let mut node = node(&scratch, "node", STORAGE, &server.url("p"));
    // The instance metadata service that there is not takes every packet and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("address");
    node.settings.env = [
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{address}/")),
        ("AWS_CONFIG_FILE", "/nonexistent".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let begin = std::time::Instant::now();
    node.spawn();
    assert_eq!(node.wait_end().code(), Some(1));
    let took = begin.elapsed();
    println!("refused after {took:?}");
    let log = node.log();
    for words in ["AWS_ACCESS_KEY_ID", "~/.aws/credentials", "role"] {
        assert!(log.contains(words), "{log}");
    }
    // Three seconds of looking, and as much for a busy machine.
    assert!(took < Duration::from_secs(20), "refused only after {took:?}");
    assert!(server.take_requests().is_empty());
}

#[test]
fn one_node_with_a_static_lease_works_where_conditions_are_not_kept_and_says_so() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-one-writer");
    let ignores = Quirks { ignores_conditions: true, ..Quirks::default() };
    let refuses = Quirks { refuses_conditions: true, ..Quirks::default() };
    for (name, quirks) in [("ignores", ignores), ("refuses", refuses)] {
        let server = S3Server::start();
        server.quirks(quirks);
        let mut node = node(&scratch, name, STATIC, &server.url("p"));
        for round in 0..3 {
            node.start();
            assert!(node.log().contains("run exactly one node on it"), "{}", node.log());
            insert(&node, round * 10..round * 10 + 10);
            assert_eq!(count(&node), (round * 10 + 10).to_string());
            node.stop();
            node.wipe_data();
        }
    }
}

#[test]
fn two_clusters_cannot_share_one_prefix() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-clusters");
    let server = S3Server::start();
    for name in ["one", "two"] {
        let mut node = node(&scratch, name, STORAGE, &server.url(name));
        node.start();
        insert(&node, 0..3);
        node.stop();
    }
    let before = keys(&server);
    let mut stranger = node(&scratch, "one", STORAGE, &server.url("two"));
    server.take_requests();
    stranger.spawn();
    assert_eq!(stranger.wait_end().code(), Some(99));
    assert!(stranger.log().contains("the data directory belongs to cluster"), "{}", stranger.log());
    assert_eq!(keys(&server), before);
    let requests = server.take_requests();
    assert!(requests.iter().all(|request| !request.starts_with("Put")), "{requests:?}");
}

#[test]
fn keys_that_expire_in_the_middle_stop_uploads_and_lose_nothing() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-expire");
    for lease in [STATIC, LONGER] {
        let server = S3Server::start();
        let name = if lease == STATIC { "static" } else { "storage" };
        let mut node = node(&scratch, name, lease, &server.url("p"));
        node.start();
        insert(&node, 0..10);
        node.wait_archived(&["app.db"]);
        server.trouble(ANY, "", ALWAYS, Trouble::Deny("ExpiredToken"));
        insert(&node, 10..20);
        wait_for("the node says that its keys have expired", || {
            node.log().contains("have expired").then_some(())
        });
        if lease == STATIC {
            let status = node.status();
            assert_eq!(status["archive"]["state"], "unreachable", "{status}");
            assert!(status["archive"]["error"].as_str().is_some_and(|why| why.contains("have expired")));
            insert(&node, 20..30);
            assert!(node.status()["archive"]["unarchived"].as_u64() >= Some(10), "{}", node.status());
            server.heal();
        } else {
            // Without the storage there is no lease, and without a lease no primary: reads
            // go on, and what was committed waits.
            node.wait_role("replica");
            assert_eq!(count(&node), "20");
            server.heal();
            node.wait_role("primary");
        }
        node.wait_archived(&["app.db"]);
        let log = node.log();
        let said = |what: &str| log.matches(what).count();
        assert!(said("the archive cannot be written") <= 1, "once for each change of state: {log}");
        node.stop();
        node.wipe_data();
        node.start();
        assert_eq!(count(&node), if lease == STATIC { "30" } else { "20" });
        node.stop();
    }
}

#[test]
fn an_idle_minute_costs_the_renewals_of_the_lease_and_with_release_on_idle_nothing() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratches = ["s3-idle-holder", "s3-idle-static", "s3-idle-resting"].map(Scratch::new);
    let buckets = scratches.each_ref().map(Bucket::new);
    let leases = [STORAGE, STATIC, RESTING];
    let mut nodes: Vec<(Node, Line)> =
        (0..3).map(|n| buckets[n].node(&scratches[n], "node", leases[n])).collect();
    for (node, _) in &mut nodes {
        node.start();
        node.wait_primary().expect("it is the primary");
        insert(node, 0..10);
        node.wait_archived(&["app.db"]);
        // Reading, opening and closing are idle too.
        assert_eq!(count(node), "10");
    }
    let [(holder, held), (alone, quiet), (resting, silent)] = &nodes[..] else { panic!("three nodes") };
    resting.wait_role("replica");
    wait_for("the node that let its lease go has looked once more", || {
        silent.take();
        std::thread::park_timeout(Duration::from_secs(2));
        let last = silent.take();
        last.is_empty().then_some(())
    });
    let requests = |node: &Node| node.status()["archive"]["requests"].clone();
    let before = [requests(holder), requests(alone), requests(resting)];
    for line in [held, quiet, silent] {
        line.take();
    }
    // One a second: a third of the time to live.
    let (begin, mut renewals) = (Instant::now(), Vec::new());
    wait_for("a minute of renewals", || {
        renewals.extend(held.take());
        (renewals.len() >= 60).then_some(())
    });
    println!(
        "in {:.1?}: {} requests of the holder, {} with a static lease, {} with release-on-idle",
        begin.elapsed(),
        renewals.len(),
        quiet.take().len(),
        silent.take().len()
    );
    let other =
        renewals.iter().find(|asked| !asked.what.starts_with("PUT ") || !asked.what.contains("/lease.json"));
    assert_eq!(other, None);
    let after = [requests(holder), requests(alone), requests(resting)];
    assert_eq!(after[1..], before[1..], "nothing at all");
    let of_lease = |requests: &serde_json::Value| requests["lease"].as_u64().expect("a number");
    assert!(of_lease(&after[0]) >= of_lease(&before[0]) + 59, "status has them: {after:?}");
    let rest = |requests: &serde_json::Value| {
        let mut requests = requests.clone();
        requests["lease"].take();
        requests
    };
    assert_eq!(rest(&after[0]), rest(&before[0]));
    let metrics = String::from_utf8(holder.get("/metrics").body).expect("text");
    assert!(metrics.contains("litefs_archive_requests{kind=\"lease\"}"), "{metrics}");
    nodes.iter_mut().for_each(|(node, _)| node.stop());
}

#[test]
fn a_replica_asks_the_archive_for_the_next_segment_and_lists_nothing() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-follows");
    let bucket = Bucket::new(&scratch);
    // Not advertised: there is no stream.
    let (mut first, _) = bucket.node(&scratch, "first", LONGER);
    first.start();
    first.wait_primary().expect("it is the primary");
    insert(&first, 0..10);
    first.wait_archived(&["app.db"]);
    let (mut second, line) = bucket.node(&scratch, "second", LONGER);
    second.start();
    second.wait_role("replica");
    line.take();
    for round in 1..4 {
        insert(&first, round * 10..round * 10 + 10);
        wait_for("the replica follows", || (count(&second) == (round * 10 + 10).to_string()).then_some(()));
    }
    let asked = line.take();
    let is_frugal = |what: &str| {
        // Upkeep may have taken segments away: then the manifest says so.
        let keys = ["/log/", "/lease.json", "/manifest.json", "/db/"];
        what.starts_with("GET ") && keys.iter().any(|key| what.contains(key)) && !what.contains("list-type")
    };
    assert!(asked.iter().any(|asked| asked.what.contains("/log/")), "{asked:?}");
    let other = asked.iter().find(|asked| !is_frugal(&asked.what));
    assert_eq!(other, None);
    second.stop();
    first.stop();
}

#[test]
fn history_restore_and_verify_read_what_a_running_node_is_writing() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-point-in-time");
    let bucket = Bucket::new(&scratch);
    let (mut node, _) = bucket.node(&scratch, "node", LONGER);
    node.start();
    node.wait_primary().expect("it is the primary");
    insert(&node, 0..10);
    let moment = SystemClock.now();
    // The next transaction is of a later millisecond.
    wait_for("the clock to go on", || (SystemClock.now() > moment).then_some(()));
    insert(&node, 10..20);
    node.wait_archived(&["app.db"]);
    let restore = |file: &str, args: &[&str]| {
        let path = scratch.join(file);
        let output = path.display().to_string();
        let output =
            bucket.litefs(&[&["restore", "--name", "app.db", "-o", &output, "--force"], args].concat());
        assert_eq!(output.code(), Some(0), "{args:?}: {}", output.stderr);
        assert_eq!(drivers::integrity(&path), "ok");
        let found = Driver::Program.query(&path, "SELECT n FROM t ORDER BY n");
        found.lines().map(|line| line.parse::<u32>().expect("a number")).collect::<Vec<_>>()
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let connection = Connection::open(node.file("app.db")).expect("open the database");
            connection.busy_timeout(support::PATIENCE).expect("set the timeout");
            let mut next = 20;
            while !stop.load(Ordering::Relaxed) {
                connection.execute("INSERT INTO t VALUES(?1)", [next]).expect("write");
                next += 1;
            }
            next
        });
        for _ in 0..3 {
            let verify = bucket.litefs(&["verify", "--deep"]);
            assert_eq!(verify.code(), Some(0), "{}{}", verify.stdout, verify.stderr);
            assert_eq!(
                restore("then.db", &["--timestamp", &moment.to_string()]),
                (0..10).collect::<Vec<_>>()
            );
            let latest = restore("latest.db", &[]);
            assert!(latest.len() >= 20);
            assert_eq!(latest, (0..latest.len() as u32).collect::<Vec<_>>());
            let history = bucket.litefs(&["history", "--name", "app.db", "--json"]);
            assert_eq!(history.code(), Some(0), "{}", history.stderr);
            let points: serde_json::Value = serde_json::from_str(&history.stdout).expect("JSON");
            let points = points.as_array().expect("points");
            assert!(points.len() > latest.len(), "one for each transaction");
            let moment = moment.to_string();
            let before = points.iter().filter(|point| point["time"].as_str() <= Some(&*moment)).count();
            assert_eq!(before, 11, "the table and ten rows: {points:?}");
            // To a transaction in the middle, as the list names it.
            let txid = points[before + 4]["txid"].as_str().expect("a TXID").to_owned();
            assert_eq!(restore("there.db", &["--txid", &txid]), (0..15).collect::<Vec<_>>());
        }
        stop.store(true, Ordering::Relaxed);
        let next: u32 = writes.join().expect("the writer");
        assert!(next > 20, "it wrote meanwhile");
    });
    node.stop();
    let verify = bucket.litefs(&["verify", "--deep"]);
    assert_eq!(verify.code(), Some(0), "{}{}", verify.stdout, verify.stderr);
}

#[test]
fn under_load_one_put_a_tick_whatever_the_number_of_databases() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const DATABASES: usize = 20;
    const TICK: Duration = Duration::from_millis(500);
    let scratch = Scratch::new("s3-ticks");
    let server = S3Server::start();
    let mut node = node(&scratch, "node", STATIC, &server.url("p"));
    node.settings.sync_interval = "500ms";
    node.start();
    let connections: Vec<Connection> = (0..DATABASES)
        .map(|n| {
            let connection = Connection::open(node.file(&format!("{n}.db"))).expect("open a database");
            connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(n)").expect("prepare");
            connection
        })
        .collect();
    let is_log = |key: &str| key.starts_with("p/log/");
    let (mut commits, mut puts) = (0, Vec::new());
    server.take_stored();
    let begin = Instant::now();
    while puts.len() < 8 {
        for connection in &connections {
            connection.execute("INSERT INTO t VALUES(1)", []).expect("write");
            commits += 1;
        }
        puts.extend(server.take_stored().into_iter().filter(|(key, _)| is_log(key)));
    }
    let took = begin.elapsed();
    println!("{commits} commits of {DATABASES} databases in {took:.1?}: {} puts to the log", puts.len());
    // The first may have been due when the count began.
    assert!(puts.len() as u128 <= took.as_millis() / TICK.as_millis() + 2, "{} in {took:?}", puts.len());
    assert!(commits >= puts.len() * 2, "{commits} commits were too few to share a put");
    drop(connections);
    node.stop();
}

#[test]
fn a_storage_that_takes_its_time_holds_up_no_commit() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-slow");
    let server = S3Server::start();
    let mut node = node(&scratch, "node", LONGER, &server.url("p"));
    node.start();
    node.wait_primary().expect("it is the primary");
    insert(&node, 0..10);
    node.wait_archived(&["app.db"]);
    server.trouble("PutObject", "log/", ALWAYS, Trouble::Hold);
    insert(&node, 10..20);
    assert_eq!(count(&node), "20");
    let status = node.status();
    assert_eq!((&status["role"], &status["archive"]["state"]), (&"primary".into(), &"uploading".into()));
    assert!(status["archive"]["unarchived"].as_u64() >= Some(1), "{status}");
    assert_eq!(node.get("/health").status, 200, "it serves");
    server.heal();
    node.wait_archived(&["app.db"]);
    node.stop();
    node.wipe_data();
    node.start();
    assert_eq!(count(&node), "20");
    node.stop();
}

#[test]
fn a_node_that_starts_while_its_storage_is_away_waits_and_says_so_once() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-away");
    let server = S3Server::start();
    let mut node = node(&scratch, "node", STORAGE, &server.url("p"));
    node.start();
    insert(&node, 0..10);
    node.stop();
    for disk in ["kept", "lost"] {
        if disk == "lost" {
            node.wipe_data();
        }
        server.trouble(ANY, "", ALWAYS, Trouble::Refuse);
        let before = node.log().len();
        node.spawn();
        let said = |node: &Node| {
            let reply = node.try_get("/health")?;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            (reply.status == 503 && text.contains("waits for its archive") && text.contains("503"))
                .then_some(())
        };
        wait_for("health says what the node waits for", || said(&node));
        // A few tries, one line.
        server.take_requests();
        let mut tries = 0;
        wait_for("the node tries again", || {
            tries += server.take_requests().len();
            (tries >= 8).then_some(())
        });
        assert!(!node.is_mounted(), "disk {disk}: it serves without its archive");
        assert_eq!(node.log()[before..].matches("the archive cannot be used").count(), 1, "{}", node.log());
        server.heal();
        node.wait_primary().expect("it starts once the storage is there");
        assert_eq!(count(&node), "10");
        node.stop();
    }
}

#[test]
fn a_put_that_arrives_after_another_node_took_over_is_refused_by_the_storage() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-late");
    let server = S3Server::start();
    let mut first = node(&scratch, "first", STORAGE, &server.url("p"));
    let mut second = node(&scratch, "second", STORAGE, &server.url("p"));
    first.start();
    first.wait_primary().expect("it is the primary");
    insert(&first, 0..10);
    first.wait_archived(&["app.db"]);
    // One put is on its way for as long as this test likes.
    server.trouble("PutObject", "log/", 1, Trouble::Hold);
    insert(&first, 10..20);
    first.signal(Signal::STOP);
    second.spawn();
    second.wait_primary().expect("the second node takes over");
    assert_eq!(count(&second), "10", "what the archive had");
    insert(&second, 100..110);
    second.wait_archived(&["app.db"]);
    server.heal();
    first.signal(Signal::CONT);
    wait_for("the first node parks what it had and rejoins", || {
        let log = first.log();
        (log.contains("branch lost") && first.try_role()? == "replica").then_some(())
    });
    let parked = std::fs::read_dir(first.data().join("parked")).expect("a parked branch").next();
    let branch = parked.expect("one").expect("listed").path().join("database");
    assert_eq!(Driver::Program.query(&branch, "SELECT count(*) FROM t").trim(), "20");
    wait_for("the first node follows", || (count(&first) == "20").then_some(()));
    let mut keys: Vec<_> =
        server.take_stored().into_iter().map(|(key, _)| key).filter(|key| key.contains("/log/")).collect();
    keys.sort();
    let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "each number of the log is taken once");
    second.stop();
    first.wait_primary().expect("it is the primary again");
    let rows = Driver::Program.query(&first.file("app.db"), "SELECT group_concat(n, ' ') FROM t");
    let expected: Vec<String> = (0..10).chain(100..110).map(|n| n.to_string()).collect();
    assert_eq!(rows.trim(), expected.join(" "));
    first.stop();
}

#[test]
fn a_replica_that_takes_over_at_once_judges_nothing_by_a_part_of_the_log() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const SEGMENTS: u32 = 30;
    let scratch = Scratch::new("s3-at-once");
    let server = S3Server::start();
    let advertised = |name: &str| node(&scratch, name, LONGER, &server.url("p")).advertised();
    let (mut first, mut second) = (advertised("first"), advertised("second"));
    first.start();
    first.wait_primary().expect("it is the primary");
    second.start();
    second.wait_role("replica");
    // By the stream it has all of it, and of the log it has read nothing.
    for n in 0..SEGMENTS {
        insert(&first, n..n + 1);
        first.wait_archived(&["app.db"]);
    }
    wait_for("the replica follows", || (count(&second) == SEGMENTS.to_string()).then_some(()));
    // To read it takes longer than to get the lease.
    server.latency(Duration::from_millis(30));
    first.stop();
    second.wait_role("primary");
    insert(&second, SEGMENTS..SEGMENTS + 1);
    assert_eq!(count(&second), (SEGMENTS + 1).to_string());
    let log = second.log();
    assert!(!log.contains("starting over") && !log.contains("branch"), "{log}");
    server.latency(Duration::ZERO);
    second.stop();
}

#[test]
fn minio_says_what_is_wrong_with_a_bucket_keys_or_the_clock() {
    let Some(minio) = Outside::minio() else { return };
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("minio-refusals");
    let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
    let good = minio.environment().to_vec();
    let with = |at: usize| {
        let mut env = good.clone();
        "something-else".clone_into(&mut env[at].1);
        env
    };
    let none = minio.url_of(&prefix).replacen("litefs-test/", "litefs-none/", 1);
    let cases = [
        ("bucket", none, good.clone(), "create the bucket"),
        ("key", minio.url_of(&prefix), with(0), "check AWS_ACCESS_KEY_ID"),
        ("secret", minio.url_of(&prefix), with(1), "check AWS_SECRET_ACCESS_KEY"),
        ("clock", minio.url_of(&prefix), good.clone(), "this machine's clock is off"),
    ];
    for (name, url, env, words) in cases {
        let mut node = node(&scratch, name, STORAGE, &url);
        node.settings.env = env;
        if name == "clock" {
            // A real one, an hour ahead: S3 takes a quarter of an hour.
            node.settings.wrapper = ["faketime", "-f", "+1h"].map(str::to_owned).into();
        }
        node.spawn();
        assert_eq!(node.wait_end().code(), Some(1), "{name}: {}", node.log());
        assert!(node.log().contains(words), "{name}: {}", node.log());
    }
    let store = S3Store::new(minio.place(&prefix)).expect("a store");
    assert!(store.list("", None).expect("list").is_empty(), "nothing is written");
}

#[test]
fn a_cold_start_waits_for_few_requests_one_after_the_other() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const DATABASES: usize = 20;
    let scratch = Scratch::new("s3-cold");
    let bucket = Bucket::new(&scratch);
    let (mut node, line) = bucket.node(&scratch, "node", STORAGE);
    node.start();
    for n in 0..DATABASES {
        let fill = "CREATE TABLE t(n INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, randomblob(5000000));";
        Driver::Program.exec(&node.file(&format!("{n}.db")), fill);
    }
    node.stop();
    // 20 ms as in a region; the long line only makes what waits for what beyond doubt.
    for latency in [20, 400] {
        node.wipe_data();
        line.latency(Duration::from_millis(latency));
        line.take();
        let begin = std::time::Instant::now();
        node.start();
        let read = Driver::Program.query(&node.file("7.db"), "SELECT length(x) FROM t");
        let (took, asked) = (begin.elapsed(), line.take());
        assert_eq!(read.trim(), "5000000");
        let depth = asked.iter().map(|asked| asked.depth).max().expect("requests");
        println!(
            "{DATABASES} databases of 5 MB, {latency} ms a request: first read after {took:?}, \
             {} requests, {depth} of them one after the other",
            asked.len()
        );
        if latency > 100 {
            assert!(depth <= 8, "{depth} requests one after the other: {asked:#?}");
        }
        line.latency(Duration::ZERO);
        node.stop();
    }
}
