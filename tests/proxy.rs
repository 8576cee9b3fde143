//! The proxy of real nodes, before a small application on a real mount.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;

use support::app::{App, Client};
use support::node::free_addr;
use support::{Node, Scratch, Settings, can_mount, wait_for};

/// A node below `base` with a proxy before an application on `app.db`.
fn node(base: &Path, mode: Option<&str>) -> (Node, App, SocketAddr) {
    let app = App::start(&base.join("mnt/app.db"), mode);
    let proxy = free_addr();
    let more = format!(
        "[proxy]\naddr = \"{proxy}\"\nadvertise-url = \"http://{proxy}\"\ntarget = \"{}\"\ndb = \"app.db\"\n\
         wait-timeout = \"120s\"\n",
        app.addr
    );
    (Node::new(base, Settings { more, ..Settings::default() }), app, proxy)
}

/// Node `name` of a cluster whose archive is `base/archive`.
fn member(base: &Path, name: &str, lease: &'static str) -> (Node, App, SocketAddr) {
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    let (mut node, app, proxy) = node(&dir, Some("wal"));
    node.settings.lease = lease;
    (node.with_archive(&base.join("archive")).advertised(), app, proxy)
}

const LEASE: &str = "type = \"storage\"\nttl = \"2s\"";
/// Moves only when it is handed over, however busy the machine is.
const LONGER: &str = "type = \"storage\"\nttl = \"10s\"";

/// The most memory that the node's process has used, in bytes.
fn memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn the_token_of_a_write_is_the_position_after_it() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    for mode in ["wal", "delete", "truncate"] {
        let scratch = Scratch::new("proxy-token");
        let (mut node, _app, proxy) = node(scratch.path(), Some(mode));
        node.start();
        let mut client = Client::open(proxy);
        for n in 1..=50 {
            assert_eq!(client.number("POST /add"), n);
            // Nobody else writes: it is the position until the next one.
            assert_eq!(client.token.as_deref(), Some(node.pos("app.db").as_str()), "{mode}");
            assert_eq!(client.number("GET /count"), n);
        }
        drop(client);
        node.stop();
    }
}

#[test]
fn health_is_the_nodes_and_ends_with_it() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-health");
    let (mut node, app, proxy) = node(scratch.path(), None);
    node.start();
    assert_eq!(Client::open(proxy).ask("GET /litefs/health").status, 200);
    // A request that is under way when the node is told to stop is answered.
    let mut client = Client::open(proxy);
    client.send("GET /slow", 0);
    wait_for("it is under way", || (app.slow.waiting.load(Ordering::Acquire) == 1).then_some(()));
    node.signal(rustix::process::Signal::TERM);
    wait_for("nobody is accepted", || std::net::TcpStream::connect(proxy).is_err().then_some(()));
    app.slow.go.store(true, Ordering::Release);
    assert_eq!(client.answer().body, "slow");
    assert_eq!(node.wait_end().code(), Some(0));
}

#[test]
fn an_upload_of_a_gigabyte_takes_no_memory() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-upload");
    let (mut node, _app, proxy) = node(scratch.path(), None);
    node.start();
    let mut client = Client::open(proxy);
    assert_eq!(client.number("POST /add"), 1);
    let before = memory(&node);
    let block = vec![7; 1 << 20];
    client.send("POST /sink", 1 << 30);
    (0..1 << 10).for_each(|_| client.write(&block));
    assert_eq!(client.answer().body, (1u64 << 30).to_string());
    let grown = memory(&node).saturating_sub(before);
    assert!(grown < 32 << 20, "the node's memory grew by {grown} bytes");
    drop(client);
    node.stop();
}

#[test]
fn a_proxy_that_cannot_listen_ends_the_node_and_says_why() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-taken");
    let (mut node, _app, proxy) = node(scratch.path(), None);
    let _taken = std::net::TcpListener::bind(proxy).expect("take its port");
    node.spawn();
    assert_eq!(node.wait_end().code(), Some(1));
    assert!(node.log().contains("set another proxy.addr"), "{}", node.log());
    assert!(!node.is_mounted());
}

/// How many writes and reads the test of one's own writes makes.
fn tries() -> u64 {
    std::env::var("LITEFS_PROXY_TRIES").ok().and_then(|tries| tries.parse().ok()).unwrap_or(40)
}

#[test]
fn a_client_reads_its_own_writes_through_any_node() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-own-writes");
    let (mut first, _app, one) = member(scratch.path(), "first", LEASE);
    let (mut second, _other, two) = member(scratch.path(), "second", LEASE);
    first.start();
    second.start();
    second.wait_role("replica");
    let (mut here, mut there) = (Client::open(one), Client::open(two));
    for n in 1..=tries() {
        // Written through either node, always by the primary; read through the other.
        let (writer, reader) = if n % 2 == 0 { (&mut here, &mut there) } else { (&mut there, &mut here) };
        assert_eq!(writer.number("POST /add"), n);
        reader.token = writer.token.clone();
        assert_eq!(reader.number("GET /count"), n, "a stale read");
        assert_eq!(there.number("GET /count"), n, "a stale read on the replica");
    }
    assert_eq!(there.ask("GET /litefs/health").status, 200);
    drop((here, there));
    second.stop();
    first.stop();
}

#[test]
fn writes_wait_through_a_change_of_the_primary() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-change");
    let (mut first, _app, _) = member(scratch.path(), "first", LEASE);
    let (mut second, _other, two) = member(scratch.path(), "second", LEASE);
    first.start();
    second.start();
    second.wait_role("replica");
    let mut client = Client::open(two);
    assert_eq!(client.number("POST /add"), 1);
    let stopping = std::thread::spawn(move || first.stop());
    let mut count = 1;
    while !stopping.is_finished() || count < 20 {
        count += 1;
        assert_eq!(client.number("POST /add"), count, "a write was lost or done twice");
    }
    stopping.join().expect("the first node stops");
    assert_eq!(client.number("POST /add"), count + 1);
    second.wait_role("primary");
    drop(client);
    second.stop();
}

#[test]
fn no_write_fails_while_the_lease_is_handed_over_again_and_again() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let scratch = Scratch::new("proxy-handoffs");
    let (mut first, _app, one) = member(scratch.path(), "first", LONGER);
    let (mut second, _other, two) = member(scratch.path(), "second", LONGER);
    first.start();
    first.wait_primary().expect("the first node is the primary");
    assert_eq!(Client::open(one).number("POST /add"), 1);
    second.start();
    second.wait_role("replica");
    let writes = std::sync::atomic::AtomicU64::new(1);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for proxy in [one, two, one, two] {
            let (writes, done) = (&writes, &done);
            scope.spawn(move || {
                let mut client = Client::open(proxy);
                while !done.load(Ordering::Acquire) {
                    // An application that has the request when the lease goes would wait for
                    // its whole busy timeout, and answer 500.
                    client.number("POST /add");
                    writes.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let mut after = 1;
        for round in 0..20 {
            let to = if round % 2 == 0 { &second } else { &first };
            let reply = to.post("/promote");
            assert_eq!(reply.status, 200, "round {round}: {}", String::from_utf8_lossy(&reply.body));
            wait_for("writes go on", || (writes.load(Ordering::Acquire) > after).then_some(()));
            after = writes.load(Ordering::Acquire);
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(Client::open(one).number("POST /add"), writes.load(Ordering::Acquire) + 1);
    second.stop();
    first.stop();
}

#[test]
fn a_write_wakes_a_node_that_rests() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    const RESTING: &str = "type = \"storage\"\nttl = \"2s\"\nrelease-on-idle = \"200ms\"";
    let scratch = Scratch::new("proxy-rest");
    let (mut first, _app, one) = member(scratch.path(), "first", RESTING);
    let (mut second, _other, two) = member(scratch.path(), "second", RESTING);
    first.start();
    second.start();
    let mut client = Client::open(one);
    for n in 0..4 {
        assert_eq!(client.number("POST /add"), 2 * n + 1);
        first.wait_role("replica");
        // Whoever wrote last rests now; the write goes there, or is done here.
        let token = client.token.take();
        client = Client::open(if n % 2 == 0 { two } else { one });
        client.token = token;
        assert_eq!(client.number("POST /add"), 2 * n + 2);
        first.wait_role("replica");
        second.wait_role("replica");
    }
    // Asleep for good: the other takes its place.
    first.stop();
    let token = client.token.take();
    client = Client::open(two);
    client.token = token;
    assert_eq!(client.number("POST /add"), 9);
    drop(client);
    second.stop();
}
