//! The proxy's server: threads of its own, a bounded number of connections, a bounded
//! time and size for headers, a stop that lets requests under way finish. Must not know
//! what is done with a request.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, WritesHeld};
use super::handle::{Client, Shared, handle};
use super::upstream::Address;
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

/// Its threads.
const THREADS: usize = 2;

/// How long a stop keeps a connection that nobody uses: what its client sends just then
/// would be lost without a trace, and could not be sent again. A request that comes is
/// answered, and told to be the last one.
const LAST_REQUEST: Duration = Duration::from_millis(100);

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
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    stopping: CancellationToken,
    ending: CancellationToken,
    /// Ends when the last connection has dropped its side.
    connections: mpsc::Receiver<()>,
}

/// Serves until the proxy is stopped or dropped.
pub fn start(options: ProxyOptions, view: Arc<dyn View>) -> Result<Proxy, ProxyError> {
    let failed = |source| ProxyError::Bind { addr: options.addr, source };
    let listener = std::net::TcpListener::bind(options.addr).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    tracing::info!(%addr, target = %options.target, "the proxy listens");
    let (stopping, ending) = (CancellationToken::new(), CancellationToken::new());
    let (connection, connections) = mpsc::channel();
    let permits = Arc::new(Semaphore::new(options.connections.max(1)));
    let gate = Gate::new();
    let mut proxy = Proxy {
        addr,
        gate: Arc::clone(&gate),
        threads: Vec::new(),
        stopping: stopping.clone(),
        ending: ending.clone(),
        connections,
    };
    for n in 0..THREADS {
        let worker = Worker {
            shared: Arc::new(Shared::new(&options, Arc::clone(&view), Arc::clone(&gate), ending.clone())),
            listener: listener.try_clone().map_err(failed)?,
            permits: Arc::clone(&permits),
            header_timeout: options.header_timeout,
            stopping: stopping.clone(),
            ending: ending.clone(),
            connection: connection.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ProxyError::Threads)?;
        let thread = std::thread::Builder::new().name(format!("litefs-proxy-{n}"));
        let thread = thread.spawn(move || worker.run(runtime)).map_err(ProxyError::Threads)?;
        proxy.threads.push(thread);
    }
    Ok(proxy)
}

impl Proxy {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets no request that writes begin here, and waits up to `patience` until the
    /// application has answered those under way. Must not be called from one of the
    /// proxy's own threads.
    pub fn hold_writes(&self, patience: Duration) -> WritesHeld {
        self.gate.hold(patience)
    }

    /// Whether the application has been asked for a write that it has not answered.
    pub fn is_writing(&self) -> bool {
        self.gate.is_used()
    }

    /// Accepts no more, and waits up to `grace` for requests under way. Must not be
    /// called from one of the proxy's own threads.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        self.stopping.cancel();
        if !self.threads.is_empty() {
            // An error says that the grace is over, or that all have ended: what is left is
            // cut off.
            let _ = self.connections.recv_timeout(grace);
        }
        self.ending.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// One thread with connections of its own, to clients and to the application: a request
/// never crosses from one thread to another, which costs more than passing it on does.
struct Worker {
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    permits: Arc<Semaphore>,
    header_timeout: Duration,
    stopping: CancellationToken,
    ending: CancellationToken,
    connection: mpsc::Sender<()>,
}

impl Worker {
    fn run(self, runtime: tokio::runtime::Runtime) {
        let ending = self.ending.clone();
        runtime.block_on(async move {
            self.accept().await;
            // Connections under way go on until then.
            ending.cancelled().await;
        });
        // Positions that are still asked for are of no use any more.
        runtime.shutdown_timeout(Duration::from_secs(1));
    }

    async fn accept(self) {
        let listener = match self.listener.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the proxy cannot accept connections"),
        };
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
            // The other threads get theirs.
            tokio::task::yield_now().await;
        }
    }

    fn start(&self, stream: TcpStream, addr: SocketAddr, permit: OwnedSemaphorePermit) {
        // Replies are written whole; what waits for more only comes later.
        let _ = stream.set_nodelay(true);
        let client = Client::new(addr, permit);
        let shared = Arc::clone(&self.shared);
        let began = Arc::new(Notify::new());
        let begins = Arc::clone(&began);
        let service = service_fn(move |request| {
            begins.notify_waiters();
            handle(Arc::clone(&shared), client.clone(), request)
        });
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
                    let last = tokio::select! {
                        ended = connection.as_mut() => Some(ended),
                        () = began.notified() => None,
                        () = tokio::time::sleep(LAST_REQUEST) => None,
                        () = ending.cancelled() => return,
                    };
                    match last {
                        Some(ended) => ended,
                        None => {
                            connection.as_mut().graceful_shutdown();
                            tokio::select! {
                                ended = connection => ended,
                                () = ending.cancelled() => return,
                            }
                        }
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, client = %addr, "a connection to the proxy broke off");
            }
        });
    }
}
