//! Connections to the application or to another node's proxy, kept for the next
//! request. Must not know why a request goes there.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::body::Outgoing;

/// Connections that nobody uses, at most.
const MOST_IDLE: usize = 256;
/// How long one is kept.
const KEEP: Duration = Duration::from_secs(30);
/// How long one is used again for what must not be sent twice: servers close idle
/// connections, the impatient ones after two seconds, and what was sent just then is
/// lost without a trace.
const KEEP_FOR_WRITES: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon an application that is not up yet is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Where an application or another proxy listens: `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Arc<str>);

impl Address {
    /// Reads `host:port`, `:port` (this machine) or `http://host:port`.
    pub fn parse(text: &str) -> Result<Address, String> {
        let bad = || format!("{text:?} is not an address like \"localhost:8080\" or \"http://host:8080\"");
        let (text, default) = match text.strip_prefix("http://") {
            Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), Some(80)),
            None => (text, None),
        };
        let text = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
        let authority: hyper::http::uri::Authority = text.parse().map_err(|_| bad())?;
        let port = authority.port_u16().or(default).filter(|port| *port != 0).ok_or_else(bad)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(bad());
        }
        Ok(Address(format!("{}:{port}", authority.host()).into()))
    }

    /// `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a request got no reply.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It was not sent.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// Where to.
        address: Address,
        /// Why.
        why: String,
    },
    /// It was sent, at least in part.
    #[error("the connection to {address} broke off before its reply came: {why}")]
    Broken {
        /// Where to.
        address: Address,
        /// Why.
        why: String,
    },
}

/// The connections to one address.
pub struct Upstream {
    address: Address,
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    sender: SendRequest<Outgoing>,
    since: Instant,
}

/// A connection in use; dropped, it is closed.
pub struct Loan {
    upstream: Arc<Upstream>,
    sender: SendRequest<Outgoing>,
    /// Whether it had a request before.
    used: bool,
}

impl Loan {
    /// The reply has been read: others may use the connection.
    pub fn give_back(self) {
        let Loan { upstream, sender, .. } = self;
        if sender.is_closed() {
            return;
        }
        let now = Instant::now();
        let mut idle = upstream.idle.lock();
        while idle.front().is_some_and(|oldest| now - oldest.since > KEEP) || idle.len() >= MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { sender, since: now });
    }
}

impl Upstream {
    /// No connections yet.
    pub fn new(address: Address) -> Arc<Upstream> {
        Arc::new(Upstream { address, idle: Mutex::default() })
    }

    /// Where they lead.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A connection for a request that may be sent twice, or may not.
    pub async fn connect(self: &Arc<Self>, twice: bool) -> Result<Loan, UpstreamError> {
        let keep = if twice { KEEP } else { KEEP_FOR_WRITES };
        while let Some(mut idle) = self.newest(keep) {
            // Until then it reads the end of the last reply.
            if idle.sender.ready().await.is_ok() {
                return Ok(Loan { upstream: Arc::clone(self), sender: idle.sender, used: true });
            }
        }
        let sender = self.open().await.map_err(|error| self.unreachable(&error))?;
        Ok(Loan { upstream: Arc::clone(self), sender, used: false })
    }

    /// The same, of what may not be up yet: tried again until `deadline`.
    pub async fn connect_until(
        self: &Arc<Self>,
        twice: bool,
        deadline: Instant,
    ) -> Result<Loan, UpstreamError> {
        loop {
            match self.connect(twice).await {
                Err(_) if Instant::now() + AGAIN < deadline => tokio::time::sleep(AGAIN).await,
                result => return result,
            }
        }
    }

    fn newest(&self, keep: Duration) -> Option<Idle> {
        let mut idle = self.idle.lock();
        let newest = idle.pop_back_if(|newest| newest.since.elapsed() < keep)?;
        Some(newest)
    }

    async fn open(&self) -> io::Result<SendRequest<Outgoing>> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address.as_str())).await;
        let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // Whoever waits for a reply is told.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection of the proxy broke off");
            }
        });
        Ok(sender)
    }

    /// Sends a request. One that can be sent twice is, if its connection turns out to
    /// have been closed meanwhile.
    pub async fn send(
        self: &Arc<Self>,
        mut loan: Loan,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Loan), UpstreamError> {
        loop {
            let again = if loan.used { copy(&request) } else { None };
            let mut error = match loan.sender.try_send_request(request).await {
                Ok(reply) => return Ok((reply, loan)),
                Err(error) => error,
            };
            let unsent = error.take_message();
            let error = error.into_error();
            request = match unsent.or(again) {
                Some(request) if loan.used => request,
                _ => return Err(UpstreamError::Broken { address: self.address.clone(), why: cause(&error) }),
            };
            let sender = self.open().await.map_err(|error| self.unreachable(&error))?;
            loan = Loan { upstream: Arc::clone(self), sender, used: false };
        }
    }

    fn unreachable(&self, error: &io::Error) -> UpstreamError {
        UpstreamError::Unreachable { address: self.address.clone(), why: error.to_string() }
    }
}

/// Whether a request has the same effect when it is sent twice, and no body that would
/// be gone.
pub fn repeatable<B: hyper::body::Body>(request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && request.body().is_end_stream()
}

fn copy(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !repeatable(request) {
        return None;
    }
    let mut copy = Request::new(Outgoing::Empty);
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    Some(copy)
}

/// The innermost reason.
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_people_write_it() {
        for (text, address) in [
            ("localhost:8080", "localhost:8080"),
            ("http://app.internal:8080/", "app.internal:8080"),
            ("http://app.internal", "app.internal:80"),
            (":81", "127.0.0.1:81"),
            ("[::1]:81", "[::1]:81"),
        ] {
            assert_eq!(Address::parse(text).map(|address| address.to_string()), Ok(address.to_owned()));
        }
        for bad in
            ["", "localhost", "https://a:1", "http://a:1/path", "a:b", "u@h:1", "http://", "a:0", "a:99999"]
        {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
    }
}
