//! The lease in a real Consul: what ends sessions, and nodes that hold it.

mod support;

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use litefs::lease::{ConsulLease, ConsulLeaseOptions, ConsulPlace, Holder, Lease, Member, Standing, Want};
use litefs::words::{Epoch, NodeId, SystemClock};
use rusqlite::Connection;
use support::node::{Node, Settings, free_addr};
use support::{PATIENCE, Scratch, api, can_mount, wait_for};

/// The shortest that Consul takes.
const TTL: Duration = Duration::from_secs(10);

/// An agent of the test's own, in memory.
struct Agent {
    addr: std::net::SocketAddr,
    child: Child,
}

impl Agent {
    /// `None`, with a word, where scripts/consul.sh was not run.
    fn start() -> Option<Agent> {
        let Ok(binary) = std::env::var("LITEFS_TEST_CONSUL_BINARY") else {
            eprintln!("SKIPPED: LITEFS_TEST_CONSUL_BINARY is not set; scripts/consul.sh sets it");
            return None;
        };
        let addr = free_addr();
        Some(Agent { addr, child: launch(&binary, addr) })
    }

    /// It is killed, and another takes its place, which knows nothing.
    fn replace(&mut self) {
        self.kill();
        let binary = std::env::var("LITEFS_TEST_CONSUL_BINARY").expect("a binary");
        self.child = launch(&binary, self.addr);
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill the agent");
        self.child.wait().expect("wait for the agent");
    }

    fn put(&self, path: &str) {
        let reply = api::request(self.addr, "PUT", path, b"").expect("ask the agent");
        assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    }

    /// The session that has locked the key.
    fn session(&self) -> String {
        let reply = api::request(self.addr, "GET", "/v1/kv/litefs/test", b"").expect("ask the agent");
        let pairs: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        pairs[0]["Session"].as_str().expect("a session").to_owned()
    }

    fn lease(&self, node: u64) -> ConsulLease {
        let member = Member {
            node: NodeId::new(node),
            hostname: format!("n{node}"),
            advertise_url: None,
            proxy_url: None,
        };
        let place = ConsulPlace::new(&format!("http://{}", self.addr), "litefs/test").expect("a place");
        let (lock_delay, clock) = (Duration::from_secs(1), Arc::new(SystemClock));
        ConsulLease::new(ConsulLeaseOptions { member, place, ttl: TTL, lock_delay, clock }).expect("a lease")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(binary: &str, addr: std::net::SocketAddr) -> Child {
    let http = format!("-http-port={}", addr.port());
    let server = format!("-server-port={}", free_addr().port());
    let serf = format!("-serf-lan-port={}", free_addr().port());
    let child = Command::new(binary)
        .args(["agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-disable-host-node-id"])
        .args([&http, &server, &serf])
        .args(["-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start an agent");
    wait_for("the agent has elected itself", || {
        TcpStream::connect(addr).ok()?;
        let reply = api::request(addr, "GET", "/v1/status/leader", b"").ok()?;
        reply.body.contains(&b':').then_some(())
    });
    child
}

fn wait(lease: &dyn Lease, mut enough: impl FnMut(&Standing) -> bool) -> Standing {
    let standing = lease.wait(PATIENCE, &mut enough);
    standing.unwrap_or_else(|| panic!("it never came to it, but to {:?}", lease.standing()))
}

fn wait_held(lease: &dyn Lease) -> Epoch {
    wait(lease, |standing| standing.holder.this().is_some()).holder.this().expect("held")
}

#[test]
fn a_session_that_others_end_ends_the_term_and_the_next_has_a_later_epoch() {
    let Some(agent) = Agent::start() else { return };
    let lease = agent.lease(1);
    lease.want(Want::Hold { after: Epoch::new(7) });
    let epoch = wait_held(&lease);
    assert!(epoch > Epoch::new(7));
    agent.put(&format!("/v1/session/destroy/{}", agent.session()));
    // It is told, and need not wait for its next renewal.
    let begin = std::time::Instant::now();
    wait(&lease, |standing| standing.holder.this() != Some(epoch));
    assert!(begin.elapsed() < TTL / 4, "it learnt of it after {:?}", begin.elapsed());
    assert!(wait_held(&lease) > epoch);
}

#[test]
fn a_holder_without_its_agent_steps_down_by_itself_and_says_why() {
    let Some(mut agent) = Agent::start() else { return };
    let lease = agent.lease(1);
    lease.want(Want::Hold { after: Epoch::default() });
    let epoch = wait_held(&lease);
    agent.kill();
    let standing = wait(&lease, |standing| standing.holder.this().is_none());
    assert!(
        standing.busy && standing.trouble.as_ref().is_some_and(|why| why.contains("Consul at")),
        "{standing:?}"
    );
    // A Consul that has lost everything does not give an epoch twice.
    agent.replace();
    assert!(wait_held(&lease) > epoch);
}

#[test]
fn an_agent_that_takes_every_call_and_answers_none_is_given_up_and_named() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = silent.local_addr().expect("its address");
    let place = ConsulPlace::new(&format!("http://{addr}"), "litefs/test").expect("a place");
    let member =
        Member { node: NodeId::new(1), hostname: "n1".to_owned(), advertise_url: None, proxy_url: None };
    let (ttl, lock_delay, clock) = (Duration::from_secs(1), Duration::from_secs(1), Arc::new(SystemClock));
    let lease = ConsulLease::new(ConsulLeaseOptions { member, place, ttl, lock_delay, clock });
    let lease = lease.expect("a lease");
    lease.want(Want::Hold { after: Epoch::default() });
    let standing = wait(&lease, |standing| standing.trouble.is_some());
    let why = standing.trouble.expect("why");
    assert!(why.contains("Consul at") && why.contains(&addr.to_string()), "{why}");
    assert_eq!(standing.holder, Holder::Unknown, "nobody's to take");
}

#[test]
fn a_dead_holders_lease_goes_to_another_when_its_session_has_ended() {
    let Some(agent) = Agent::start() else { return };
    let (one, two) = (agent.lease(1), agent.lease(2));
    one.want(Want::Hold { after: Epoch::default() });
    let epoch = wait_held(&one);
    two.want(Want::Hold { after: Epoch::default() });
    wait(&two, |standing| matches!(standing.holder, Holder::Other { alive: true, .. }));
    drop(one);
    assert!(wait_held(&two) > epoch);
}

/// Node `name` of a cluster whose archive is `base/archive`.
fn node(agent: &Agent, base: &Path, name: &str) -> Node {
    let lease = format!(
        "type = \"consul\"\nhostname = \"{name}\"\n[lease.consul]\nurl = \"http://{}\"\nkey = \"litefs/nodes\"",
        agent.addr
    );
    let settings = Settings { lease: lease.leak(), ..Settings::default() };
    let dir = base.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    Node::new(&dir, settings).with_archive(&base.join("archive"))
}

fn insert(node: &Node, numbers: std::ops::Range<u32>) -> rusqlite::Result<()> {
    let connection = Connection::open(node.file("app.db"))?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY)")?;
    for n in numbers {
        connection.execute("INSERT INTO t VALUES(?1)", [n])?;
    }
    Ok(())
}

fn wait_primary(node: &Node) {
    wait_for("the node is the primary", || (node.status()["role"] == "primary").then_some(()));
}

#[test]
fn nodes_take_over_from_one_that_stopped_and_from_one_that_was_killed() {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let Some(agent) = Agent::start() else { return };
    let scratch = Scratch::new("consul-nodes");
    let (mut first, mut second) =
        (node(&agent, scratch.path(), "first"), node(&agent, scratch.path(), "second"));
    first.start();
    insert(&first, 0..20).expect("write on the first");
    first.wait_archived(&["app.db"]);
    second.start();
    assert_eq!(second.status()["primary"], "first");
    first.stop();
    wait_primary(&second);
    insert(&second, 20..30).expect("write on the second");
    second.wait_archived(&["app.db"]);
    first.start();
    second.kill();
    wait_primary(&first);
    insert(&first, 30..40).expect("write on the first again");
    let connection = Connection::open(first.file("app.db")).expect("open");
    let rows: u32 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
    assert_eq!(rows, 40);
    drop(connection);
    first.stop();
}
