//! The proxy before an application against the application alone: small GETs by `wrk`,
//! interleaved in one run. The application answers from memory, which is the hardest
//! case: all that is measured is what the proxy costs. `LITEFS_BENCH_ROUNDS` rounds (5).
//! Run as `cargo bench --bench proxy`; needs `wrk` on PATH (apt-get install wrk).

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use litefs::proxy::{Address, ProxyOptions, Role, View, start};
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

/// An application that answers 200 bytes.
fn application() -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("bind");
    let addr = listener.local_addr().expect("an address");
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = |_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&[b'x'; 200]))))
            };
            stream.set_nodelay(true).expect("no delay");
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    (runtime, addr)
}

/// Requests a second by `wrk`.
fn rate(addr: SocketAddr, header: &str) -> f64 {
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "-d3s", "-H", header, &format!("http://{addr}/")])
        .output()
        .expect("wrk is on PATH (apt-get install wrk)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("Non-2xx"), "{said}");
    let rate = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok()).unwrap_or_else(|| panic!("wrk: {said}"))
}

fn main() {
    let rounds =
        std::env::var("LITEFS_BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let (_runtime, app) = application();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let target = Address::parse(&app.to_string()).expect("an address");
    let options = ProxyOptions::new(any, target, vec![DbName::new("app.db").expect("a name")]);
    let proxy = start(options, Arc::new(Still(watch::Sender::new(())))).expect("a proxy");
    let token = format!("Litefs-Txid: {}", pos());
    println!("| requests | application alone, 1/s | through the proxy | range |");
    println!("|---|---|---|---|");
    for (name, header) in [("small GETs", "X-None: 1"), ("small GETs with a token", token.as_str())] {
        let mut alone = Vec::new();
        let mut ratios: Vec<f64> = Vec::new();
        for _ in 0..rounds {
            let direct = rate(app, header);
            ratios.push(rate(proxy.addr(), header) / direct);
            alone.push(direct);
        }
        alone.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        let (alone, ratio) = (alone[alone.len() / 2], ratios[ratios.len() / 2]);
        println!("| {name} | {alone:.0} | **{ratio:.2}** | {low:.2}–{high:.2} |");
    }
}
