//! The proxy before an application against the application alone: small GETs by `wrk`,
//! interleaved in one run. An application of hyper that answers from memory is the hardest
//! case: all that is measured is what the proxy costs, for it does what the proxy does
//! twice; one that reads a row of a database is what the proxy is for; one of Node.js is
//! what people run. `LITEFS_BENCH_ROUNDS` rounds (5).
//! Run as `cargo bench --bench proxy`; needs `wrk` and `node` on PATH (apt-get install wrk
//! nodejs).

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use litefs::proxy::{Address, Proxy, ProxyOptions, Role, View, start};
use litefs::words::{Checksum, DbName, Pos, Txid};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A primary whose database stands still.
struct Still(watch::Sender<()>);

fn pos() -> Pos {
    Pos { txid: Txid::new(42), checksum: Checksum::EMPTY }
}

impl View for Still {
    fn role(&self) -> Role {
        Role::Replica { primary: None }
    }

    fn pos(&self, _: &DbName) -> Pos {
        pos()
    }

    fn settled_pos(&self, _: &DbName) -> Result<Pos, String> {
        Ok(pos())
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    fn want_primary(&self) {}
}

thread_local! {
    static ROWS: rusqlite::Connection = rows();
}

/// A database with some rows, in memory.
fn rows() -> rusqlite::Connection {
    let rows = rusqlite::Connection::open_in_memory().expect("a database");
    rows.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
         INSERT INTO t SELECT i, hex(randomblob(100)) FROM n;",
    )
    .expect("rows");
    rows
}

/// A row of the database, by its key, and what comes after it.
fn row() -> Bytes {
    ROWS.with(|rows| {
        let mut select = rows.prepare_cached("SELECT v FROM t WHERE id >= ? LIMIT 5").expect("prepare");
        let mut found = select.query([4711]).expect("query");
        let mut text = String::new();
        while let Some(row) = found.next().expect("a row") {
            text.push_str(row.get_ref(0).expect("a column").as_str().expect("a text"));
        }
        text.into()
    })
}

/// An application that answers 200 bytes, or rows of a database.
fn application() -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("bind");
    let addr = listener.local_addr().expect("an address");
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = |request: Request<Incoming>| async move {
                let body = match request.uri().path() {
                    "/row" => row(),
                    _ => Bytes::from_static(&[b'x'; 200]),
                };
                Ok::<_, Infallible>(Response::new(Full::new(body)))
            };
            stream.set_nodelay(true).expect("no delay");
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    (runtime, addr)
}

/// A program of Node.js that answers 200 bytes; killed when it is dropped.
struct NodeJs(Child, SocketAddr);

impl NodeJs {
    fn start() -> NodeJs {
        let script = "const s = require('http').createServer((q, r) => r.end('x'.repeat(200)));
            s.keepAliveTimeout = 60000;
            s.listen(0, '127.0.0.1', () => console.log(s.address().port))";
        let program = Command::new("node").args(["-e", script]).stdout(Stdio::piped()).spawn();
        let mut program = program.expect("node is on PATH (apt-get install nodejs)");
        let mut port = String::new();
        let stdout = program.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut port).expect("its port");
        NodeJs(program, SocketAddr::from((Ipv4Addr::LOCALHOST, port.trim().parse().expect("a port"))))
    }
}

impl Drop for NodeJs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy before an application.
fn before(app: SocketAddr) -> Proxy {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let target = Address::parse(&app.to_string()).expect("an address");
    let options = ProxyOptions::new(any, target, vec![DbName::new("app.db").expect("a name")]);
    start(options, Arc::new(Still(watch::Sender::new(())))).expect("a proxy")
}

/// Processor time of this process (hyper and proxy), of `wrk` and of `node` until now, in
/// hundredths of a second.
fn cpu(node: &NodeJs) -> f64 {
    let of = |process: &str| -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("read its stat");
        let fields = stat.rsplit(')').next().expect("the fields after the name").split_whitespace();
        fields.skip(11).take(4).map(|ticks| ticks.parse::<f64>().expect("a number")).sum()
    };
    of("self") + of(&node.0.id().to_string())
}

/// Requests a second by `wrk`, and how many there would be if two processors did nothing
/// else: what other work on the machine changes little.
fn rate(node: &NodeJs, addr: SocketAddr, path: &str, header: &str) -> (f64, f64) {
    let before = cpu(node);
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "-d3s", "-H", header, &format!("http://{addr}{path}")])
        .output()
        .expect("wrk is on PATH (apt-get install wrk)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("Non-2xx"), "{said}");
    let rate = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let rate = rate.and_then(|rate| rate.trim().parse().ok()).unwrap_or_else(|| panic!("wrk: {said}"));
    let count = said.lines().find_map(|line| line.trim().split_once(" requests in "));
    let count: Option<f64> = count.and_then(|(count, _)| count.parse().ok());
    (rate, count.unwrap_or_else(|| panic!("wrk: {said}")) / (cpu(node) - before) * 200.0)
}

fn main() {
    let rounds = std::env::var("LITEFS_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse::<usize>().ok());
    let rounds = rounds.unwrap_or(5).max(1);
    let (_runtime, app) = application();
    let node = NodeJs::start();
    let (proxy, before_node) = (before(app), before(node.1));
    let token = format!("Litefs-Txid: {}", pos());
    println!("| requests | application alone, 1/s | through the proxy | range | by processor time |");
    println!("|---|---|---|---|---|");
    for (name, app, proxy, path, header) in [
        ("hyper, from memory", app, &proxy, "/", "X-None: 1"),
        ("the same with a token", app, &proxy, "/", token.as_str()),
        ("hyper, five rows of SQLite, with a token", app, &proxy, "/row", token.as_str()),
        ("Node.js, from memory, with a token", node.1, &before_node, "/", token.as_str()),
    ] {
        let mut alone = Vec::new();
        let (mut ratios, mut costs): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let direct = rate(&node, app, path, header);
            let through = rate(&node, proxy.addr(), path, header);
            ratios.push(through.0 / direct.0);
            costs.push(through.1 / direct.1);
            alone.push(direct.0);
        }
        for figures in [&mut alone, &mut ratios, &mut costs] {
            figures.sort_by(f64::total_cmp);
        }
        let middle = rounds / 2;
        let (low, high) = (ratios[0], ratios[rounds - 1]);
        println!(
            "| {name} | {:.0} | **{:.2}** | {low:.2}–{high:.2} | {:.2} |",
            alone[middle], ratios[middle], costs[middle]
        );
    }
}
