//! The proxy's server: threads of its own, a bounded number of connections, a bounded
//! time and size for headers, a stop that lets requests under way finish. Must not know
//! what is done with a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::handle::{Client, Shared, handle};
use super::rules::Rules;
use super::upstream::{Address, Upstream};
use super::view::{Forward, View};
use crate::words::DbName;

/// How the proxy works.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Where it listens; port 0 takes any free one.
    pub addr: SocketAddr,
    /// The application.
    pub target: Address,
    /// The databases whose positions clients carry.
    pub databases: Vec<DbName>,
    /// Paths that are passed on as they are (`*` matches anything).
    pub passthrough: Vec<String>,
    /// Paths whose reads count as writes.
    pub always_forward: Vec<String>,
    /// How writes get to the primary.
    pub forward: Forward,
    /// How long a request waits for its position, a primary, or the application.
    pub wait_timeout: Duration,
    /// How long a client may take to send a request's headers, and how long an idle
    /// connection is kept.
    pub header_timeout: Duration,
    /// How many connections at once; more wait in the kernel's queue.
    pub connections: usize,
}

impl ProxyOptions {
    /// The usual limits, nothing special.
    pub fn new(addr: SocketAddr, target: Address, databases: Vec<DbName>) -> ProxyOptions {
        ProxyOptions {
            addr,
            target,
            databases,
            passthrough: Vec::new(),
            always_forward: Vec::new(),
            forward: Forward::Proxy,
            wait_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(30),
            connections: 4096,
        }
    }
}

/// Bytes of a request's line and headers, at most.
const MOST_HEADERS: usize = 64 << 10;

/// The proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The address.
    #[error(
        "the proxy cannot listen on {addr}: {source}; stop the process that holds the address, or set another proxy.addr"
    )]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The threads.
    #[error("starting the proxy's threads failed: {0}; is the limit of processes (ulimit -u) too low?")]
    Threads(io::Error),
}

/// A proxy that runs; dropping it stops it.
pub struct Proxy {
    addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    stopping: CancellationToken,
    ending: CancellationToken,
    /// Ends when the last connection has dropped its side.
    connections: mpsc::Receiver<()>,
}

/// Serves until the proxy is stopped or dropped.
pub fn start(options: ProxyOptions, view: Arc<dyn View>) -> Result<Proxy, ProxyError> {
    let failed = |source| ProxyError::Bind { addr: options.addr, source };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("litefs-proxy")
        .enable_all()
        .build()
        .map_err(ProxyError::Threads)?;
    let listener = runtime.block_on(TcpListener::bind(options.addr)).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    tracing::info!(%addr, target = %options.target, "the proxy listens");
    let (stopping, ending) = (CancellationToken::new(), CancellationToken::new());
    let (connection, connections) = mpsc::channel(1);
    let shared = Shared {
        view,
        rules: Rules::new(&options.passthrough, &options.always_forward),
        tracked: options.databases,
        forward: options.forward,
        wait_timeout: options.wait_timeout,
        application: Upstream::new(options.target),
        peer: Mutex::default(),
        ending: ending.clone(),
    };
    let accept = Accept {
        shared: Arc::new(shared),
        permits: Arc::new(Semaphore::new(options.connections.max(1))),
        header_timeout: options.header_timeout,
        stopping: stopping.clone(),
        ending: ending.clone(),
        connection,
    };
    runtime.spawn(accept.run(listener));
    Ok(Proxy { addr, runtime: Some(runtime), stopping, ending, connections })
}

impl Proxy {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts no more, and waits up to `grace` for requests under way. Must not be
    /// called from one of the proxy's own threads.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let Some(runtime) = self.runtime.take() else { return };
        self.stopping.cancel();
        // An error says that the grace is over: what is left is cut off.
        let _ = runtime.block_on(async { tokio::time::timeout(grace, self.connections.recv()).await });
        self.ending.cancel();
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

struct Accept {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    header_timeout: Duration,
    stopping: CancellationToken,
    ending: CancellationToken,
    connection: mpsc::Sender<()>,
}

impl Accept {
    async fn run(self, listener: TcpListener) {
        loop {
            let permit = tokio::select! {
                () = self.stopping.cancelled() => return,
                permit = Arc::clone(&self.permits).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return };
            let accepted = tokio::select! {
                () = self.stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => self.start(stream, addr, permit),
                Err(error) => {
                    // Out of descriptors, mostly: the connection stays queued, and
                    // without a pause this loop would spin.
                    tracing::warn!(%error, "the proxy could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn start(&self, stream: TcpStream, addr: SocketAddr, permit: OwnedSemaphorePermit) {
        // Replies are written whole; what waits for more only comes later.
        let _ = stream.set_nodelay(true);
        let client = Client::new(addr, permit);
        let shared = Arc::clone(&self.shared);
        let service = service_fn(move |request| handle(Arc::clone(&shared), client.clone(), request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let (stopping, ending) = (self.stopping.clone(), self.ending.clone());
        let held = self.connection.clone();
        tokio::spawn(async move {
            let _held = held;
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => ended,
                        () = ending.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, client = %addr, "a connection to the proxy broke off");
            }
        });
    }
}
