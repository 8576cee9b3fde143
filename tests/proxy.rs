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
    let more = format!("[proxy]\naddr = \"{proxy}\"\ntarget = \"{}\"\ndb = \"app.db\"\n", app.addr);
    (Node::new(base, Settings { more, ..Settings::default() }), app, proxy)
}

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
