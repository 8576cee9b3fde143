//! How long writers stall when the primary changes: planned, and killed with -9. Two nodes
//! as processes with their proxies and applications; a writer in the mounts, which waits
//! as SQLite does, and a client of a proxy, which sees one slow request. Prints a table
//! for docs/PERFORMANCE.md. Run as `cargo bench --bench handoff`; `LITEFS_BENCH_ROUNDS`
//! rounds of each (10).

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use support::app::{App, Client};
use support::node::free_addr;
use support::{Node, PATIENCE, Scratch, Settings, can_mount, wait_for};

/// The term of the lease.
const TTL: Duration = Duration::from_secs(4);

/// A node with what stands before and behind it.
struct Member {
    node: Node,
    proxy: SocketAddr,
    _app: App,
}

fn member(scratch: &Scratch, name: &str) -> Member {
    let dir = scratch.join(name);
    std::fs::create_dir_all(&dir).expect("create the node's directory");
    let app = App::start(&dir.join("mnt/app.db"), Some("wal"));
    let proxy = free_addr();
    let settings = Settings {
        lease: "type = \"storage\"\nttl = \"4s\"",
        sync_interval: "1s",
        log: "info",
        more: format!(
            "[proxy]\naddr = \"{proxy}\"\nadvertise-url = \"http://{proxy}\"\ntarget = \"{}\"\ndb = \"app.db\"\n\
             wait-timeout = \"60s\"\n",
            app.addr
        ),
        ..Settings::default()
    };
    let node = Node::new(&dir, settings).with_archive(&scratch.join("archive")).advertised();
    Member { node, proxy, _app: app }
}

/// The longest time that one write took while `change` went on, and until one came after.
fn longest(mut write: impl FnMut() + Send, change: impl FnOnce()) -> Duration {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        let writer = scope.spawn(move || {
            let mut longest = Duration::ZERO;
            loop {
                let last = done.load(Ordering::Acquire);
                let begin = Instant::now();
                write();
                longest = longest.max(begin.elapsed());
                if last {
                    return longest;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        change();
        done.store(true, Ordering::Release);
        writer.join().expect("the writer")
    })
}

fn promote(to: &Member) {
    let reply = to.node.post("/promote");
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
}

/// Writes where it is taken, as an application does that is told where the primary is.
fn in_the_mounts(members: &[Member; 2]) -> impl FnMut() + Send + use<> {
    let open = |member: &Member| {
        let db = Connection::open(member.node.file("app.db")).expect("open the database");
        db.busy_timeout(Duration::ZERO).expect("set the timeout");
        db
    };
    let connections = [open(&members[0]), open(&members[1])];
    move || {
        let begin = Instant::now();
        while !connections.iter().any(|db| db.execute("INSERT INTO t VALUES(NULL)", []).is_ok()) {
            assert!(begin.elapsed() < PATIENCE, "nobody takes the write");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn through(proxy: SocketAddr) -> impl FnMut() + Send {
    let mut client = Client::open(proxy);
    move || {
        client.number("POST /add");
    }
}

/// The same, again and again where the answer is that nobody knows (502: the primary died
/// with the request) or that there is no primary yet (503).
fn stubbornly(proxy: SocketAddr) -> impl FnMut() + Send {
    let mut client = Client::open(proxy);
    move || {
        let begin = Instant::now();
        loop {
            match client.ask("POST /add").status {
                200 => return,
                502 | 503 => std::thread::sleep(Duration::from_millis(1)),
                status => panic!("POST /add: {status}"),
            }
            assert!(begin.elapsed() < PATIENCE, "nobody takes the write");
        }
    }
}

fn print(name: &str, goal: &str, mut spans: Vec<Duration>) {
    spans.sort();
    let ms = |at: usize| spans[at].as_millis();
    println!("| {name} | {goal} | {} | {} | {} |", ms(spans.len() / 2), ms(spans.len() - 1), spans.len());
}

fn main() {
    if !can_mount() {
        return;
    }
    let rounds = std::env::var("LITEFS_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse::<usize>().ok());
    let rounds = rounds.unwrap_or(10).max(1);
    let scratch = Scratch::new("bench-handoff");
    let mut members = [member(&scratch, "first"), member(&scratch, "second")];
    members[0].node.start();
    members[0].node.wait_primary().expect("the first node is the primary");
    through(members[0].proxy)();
    members[1].node.start();
    members[1].node.wait_role("replica");
    println!("| writers stall | goal, ms | middle, ms | most, ms | rounds |");
    println!("|---|---|---|---|---|");
    let planned = |rounds: usize, write: &dyn Fn() -> Box<dyn FnMut() + Send>| -> Vec<Duration> {
        let one = |round: usize| {
            let (from, to) = (&members[round % 2], &members[(round + 1) % 2]);
            // The change before is over, also for the new replica.
            wait_for("the replica follows", || {
                let status = from.node.try_status()?;
                let follows = status["replicas"].as_array().is_some_and(|replicas| !replicas.is_empty());
                (follows && status["role"] == "primary").then_some(())
            });
            longest(write(), || promote(to))
        };
        (0..rounds).map(one).collect()
    };
    let even = rounds.next_multiple_of(2);
    print("planned, in the mounts", "300", planned(even, &|| Box::new(in_the_mounts(&members))));
    let proxies = [members[0].proxy, members[1].proxy];
    print("planned, through a proxy", "300", planned(even, &|| Box::new(through(proxies[0]))));
    let mut unplanned = Vec::new();
    for round in 0..rounds.min(5) {
        let [one, two] = &mut members;
        let (dies, lives) = if round % 2 == 0 { (one, two) } else { (two, one) };
        unplanned.push(longest(stubbornly(lives.proxy), || {
            dies.node.kill();
            lives.node.wait_role("primary");
        }));
        dies.node.start();
        dies.node.wait_role("replica");
    }
    print("killed, through a proxy", &(TTL + Duration::from_secs(1)).as_millis().to_string(), unplanned);
    for member in &mut members {
        member.node.stop();
    }
}
