//! The API's server: threads of its own, a bounded number of connections, a bounded
//! time for headers, a stop that lets replies under way finish. Must not know the
//! routes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::bind::{BindError, bind};
use super::bridge::Patience;
use super::handlers::{Shared, router};
use super::service::Service;
use super::stream::Pace;

/// How the API is served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where it listens; port 0 takes any free one.
    pub addr: SocketAddr,
    /// The token that everything but `/health` asks for.
    pub token: Option<String>,
    /// How many connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a client may take to send a request's headers, and how long an
    /// idle connection is kept.
    pub header_timeout: Duration,
    /// How long a client may neither send nor take a byte of a body.
    pub stall_timeout: Duration,
    /// How streams keep time.
    pub pace: Pace,
}

impl ServerOptions {
    /// The usual limits.
    pub fn new(addr: SocketAddr, token: Option<String>) -> ServerOptions {
        ServerOptions {
            addr,
            token,
            connections: 256,
            header_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            pace: Pace::default(),
        }
    }
}

/// The API could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The threads.
    #[error("starting the API's threads failed: {0}; is the limit of processes (ulimit -u) too low?")]
    Threads(io::Error),
}

/// A server that runs; dropping it stops it.
pub struct Server {
    addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    stopping: CancellationToken,
    ending: CancellationToken,
    /// Ends when the last connection has dropped its side.
    connections: mpsc::Receiver<()>,
}

/// Serves the API of `service` until the server is stopped or dropped.
pub fn serve(options: ServerOptions, service: Arc<dyn Service>) -> Result<Server, ServeError> {
    let listener = bind(options.addr, options.token.as_deref())?;
    let addr = listener.local_addr().map_err(|source| BindError::Io { addr: options.addr, source })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(options.connections.max(1))
        .thread_name("litefs-api")
        .enable_all()
        .build()
        .map_err(ServeError::Threads)?;
    let listener = {
        let _on = runtime.enter();
        TcpListener::from_std(listener).map_err(|source| BindError::Io { addr, source })?
    };
    let (stopping, ending) = (CancellationToken::new(), CancellationToken::new());
    let (connection, connections) = mpsc::channel(1);
    let accept = Accept {
        router: router(Shared {
            service,
            token: options.token.as_deref().filter(|token| !token.is_empty()).map(Into::into),
            stopping: stopping.clone(),
            patience: Patience { stall: options.stall_timeout, ending: ending.clone() },
            pace: options.pace,
        }),
        permits: Arc::new(Semaphore::new(options.connections.max(1))),
        header_timeout: options.header_timeout,
        stopping: stopping.clone(),
        ending: ending.clone(),
        connection,
    };
    runtime.spawn(accept.run(listener));
    tracing::info!(%addr, token = options.token.is_some(), "serving the api");
    Ok(Server { addr, runtime: Some(runtime), stopping, ending, connections })
}

impl Server {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts no more, and waits up to `grace` for replies under way. Must not be
    /// called from one of the server's own threads.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        self.stopping.cancel();
        // An error says that the grace is over: what is left is cut off.
        let _ = runtime.block_on(async { tokio::time::timeout(grace, self.connections.recv()).await });
        self.ending.cancel();
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

struct Accept {
    router: Router,
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
                permit = self.permits.clone().acquire_owned() => permit,
            };
            let Ok(permit) = permit else {
                return;
            };
            let accepted = tokio::select! {
                () = self.stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.start(stream, permit),
                Err(error) => {
                    // Out of descriptors, mostly: the connection stays queued, and
                    // without a pause this loop would spin.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn start(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // A change set waits for nothing (Nagle's algorithm and delayed acknowledgements
        // together cost 40 ms); without the option it is only slower.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let (stopping, ending) = (self.stopping.clone(), self.ending.clone());
        let held = (permit, self.connection.clone());
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
                tracing::debug!(%error, "a connection to the api broke off");
            }
        });
    }
}
