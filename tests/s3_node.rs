//! A node on S3: what it asks for, how soon it serves, and what it says when S3
//! refuses.

#[path = "support/s3_server/mod.rs"]
mod s3_server;
mod support;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use litefs::object::{ObjectStore as _, S3Store};
use s3_server::{ANY, Quirks, S3Server, Trouble};
use support::drivers::Driver;
use support::line::Line;
use support::{Node, Outside, Scratch, Settings, can_mount, wait_for};

const ALWAYS: u64 = u64::MAX;
const STATIC: &str = "type = \"static\"";
const STORAGE: &str = "type = \"storage\"\nttl = \"3s\"";

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
    for lease in [STATIC, STORAGE] {
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
            server.heal();
            node.wait_archived(&["app.db"]);
            node.stop();
            node.wipe_data();
        } else {
            // Without the storage there is no lease, and without a lease no primary.
            node.kill();
            server.heal();
        }
        node.start();
        assert_eq!(count(&node), if lease == STATIC { "30" } else { "20" });
        node.stop();
    }
}

#[test]
fn an_idle_node_asks_for_nothing_but_its_lease() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("s3-idle");
    let server = S3Server::start();
    let mut holder = node(&scratch, "holder", STORAGE, &server.url("held"));
    let mut alone = node(&scratch, "alone", STATIC, &server.url("alone"));
    for node in [&mut holder, &mut alone] {
        node.start();
        insert(node, 0..10);
        node.wait_archived(&["app.db"]);
        // Reading, opening and closing are idle too.
        assert_eq!(count(node), "10");
    }
    let counted = |node: &Node| node.status()["archive"]["requests"].clone();
    let before = [counted(&holder), counted(&alone)];
    server.take_requests();
    let mut requests = Vec::new();
    wait_for("the lease is renewed", || {
        requests.extend(server.take_requests());
        (requests.len() >= 5).then_some(())
    });
    assert!(requests.iter().all(|request| request == "PutObject held/lease.json"), "{requests:?}");
    let after = [counted(&holder), counted(&alone)];
    assert_eq!(after[1], before[1]);
    let renewals = |requests: &serde_json::Value| requests["lease"].as_u64().expect("a number");
    assert!(renewals(&after[0]) >= renewals(&before[0]) + 4, "status has them: {after:?}");
    let rest = |mut requests: serde_json::Value| {
        requests["lease"].take();
        requests
    };
    assert_eq!(rest(after[0].clone()), rest(before[0].clone()));
    let metrics = String::from_utf8(holder.get("/metrics").body).expect("text");
    assert!(metrics.contains("litefs_archive_requests{kind=\"lease\"}"), "{metrics}");
    holder.stop();
    alone.stop();
}

#[test]
fn a_cold_start_waits_for_few_requests_one_after_the_other() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const DATABASES: usize = 20;
    let scratch = Scratch::new("s3-cold");
    let memory = S3Server::start();
    let (url, env) = match Outside::minio() {
        Some(minio) => {
            let prefix = scratch.path().file_name().expect("a name").to_string_lossy().into_owned();
            (minio.url_of(&prefix), minio.environment().to_vec())
        }
        None => (memory.url("p"), environment()),
    };
    let line = Line::to(&Line::end_of(&url));
    let mut node = node(&scratch, "node", STORAGE, &line.url(&url));
    node.settings.env = env;
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
