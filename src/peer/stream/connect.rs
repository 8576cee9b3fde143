//! The replica's half of a stream: connecting to a primary. Every wait is bounded.
//! Must not come back by itself: who follows decides when.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Pace;
use super::incoming::Following;
use super::serve::{MEDIA_TYPE, greet};
use crate::peer::wire::{Fault, Hello, Message, Up};
use crate::words::{ClusterId, DbName, Pos};

/// How long a primary may take to answer: it may have much of its log to look through.
const ANSWER: Duration = Duration::from_secs(30);
/// A refusal is no longer than this.
const MAX_REFUSAL: usize = 64 << 10;

/// A stream could not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The address is none.
    #[error("{url:?} is not the address of a node's API: {why}; it looks like http://10.0.0.1:20202")]
    Url {
        /// What the primary says of itself.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody answers.
    #[error(
        "the primary at {url} does not answer: {why}; is its lease.advertise-url right, can it be reached?"
    )]
    NoNode {
        /// The address.
        url: String,
        /// Why.
        why: String,
    },
    /// It says no.
    #[error("the primary at {url} refuses the stream: {text}")]
    Refused {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// It is a node of another cluster.
    #[error(
        "the node at {url} is of cluster {found}, this one of cluster {expected}: nothing is taken from it"
    )]
    OtherCluster {
        /// The address.
        url: String,
        /// This node's.
        expected: ClusterId,
        /// Its.
        found: ClusterId,
    },
    /// The connection broke off, or nothing came for too long.
    #[error("the stream from {url} broke off: {why}")]
    Broken {
        /// The address.
        url: String,
        /// Why.
        why: String,
    },
    /// What came is not what a primary says.
    #[error("what came from {url} is no sound stream: {fault}")]
    Fault {
        /// The address.
        url: String,
        /// What is wrong.
        fault: Fault,
    },
    /// It came in an order that makes no sense.
    #[error("what came from {url} is no sound stream: {why}")]
    Disorder {
        /// The address.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A change set could not be kept here.
    #[error("keeping a change set that came: {0}")]
    Spool(io::Error),
    /// This node does not want it any more.
    #[error("the stream was given up")]
    Cancelled,
}

/// What a replica wants to follow.
#[derive(Clone, Debug)]
pub struct Follow {
    /// Where the primary's API is.
    pub url: String,
    /// The token that it asks for.
    pub token: Option<String>,
    /// Who the replica is.
    pub hello: Hello,
    /// Where its databases stand.
    pub positions: Vec<(DbName, Pos)>,
    /// Where large change sets are kept while they come.
    pub spool: PathBuf,
    /// How the two keep time.
    pub pace: Pace,
}

pub(super) type Request1 = Request<UnsyncBoxBody<Bytes, io::Error>>;

/// Begins streams, on a thread of its own. Must not be used from an asynchronous
/// context.
pub struct StreamClient {
    runtime: tokio::runtime::Runtime,
}

impl StreamClient {
    /// With the thread running.
    pub fn new() -> io::Result<StreamClient> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("litefs-stream")
            .enable_all()
            .build()?;
        Ok(StreamClient { runtime })
    }

    /// Begins a stream; `cancel` ends it, this call included.
    pub fn follow(&self, follow: &Follow, cancel: &CancellationToken) -> Result<Following<'_>, StreamError> {
        let (says, said) = mpsc::channel(64);
        let body = self.runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => Err(StreamError::Cancelled),
                body = begin(follow, said) => body,
            }
        })?;
        let following = Following::new(&self.runtime, follow, cancel.clone(), says, body);
        following.welcomed()
    }
}

/// Sends the request; gives the reply's body if the answer is yes.
async fn begin(follow: &Follow, said: mpsc::Receiver<Up>) -> Result<Incoming, StreamError> {
    let url = &follow.url;
    let no_node = |why: String| StreamError::NoNode { url: url.clone(), why };
    let (host, port, request) = request(follow, said)?;
    let connected = timeout(follow.pace.deadline, TcpStream::connect((host.as_str(), port))).await;
    let socket = connected
        .map_err(|_| no_node(format!("no connection within {} ms", follow.pace.deadline.as_millis())))?
        .map_err(|error| no_node(error.to_string()))?;
    // Positions and beats are small, and what waits for them is a person.
    socket.set_nodelay(true).map_err(|error| no_node(error.to_string()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(|error| no_node(error.to_string()))?;
    // It ends with the stream; what ended it shows there.
    tokio::spawn(async move { drop(connection.await) });
    let reply = timeout(ANSWER, sender.send_request(request)).await;
    let reply = reply
        .map_err(|_| no_node(format!("no answer within {} s", ANSWER.as_secs())))?
        .map_err(|error| StreamError::Broken { url: url.clone(), why: error.to_string() })?;
    if reply.status() == StatusCode::OK {
        return Ok(reply.into_body());
    }
    Err(refused(url, reply).await)
}

async fn refused(url: &str, reply: Response<Incoming>) -> StreamError {
    let status = reply.status();
    let text = timeout(ANSWER, Limited::new(reply.into_body(), MAX_REFUSAL).collect()).await;
    let text = text.ok().and_then(Result::ok).map(|text| text.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let text = if text.is_empty() { status.to_string() } else { text };
    StreamError::Refused { url: url.to_owned(), status: status.as_u16(), text }
}

fn request(follow: &Follow, said: mpsc::Receiver<Up>) -> Result<(String, u16, Request1), StreamError> {
    let bad = |why: &str| StreamError::Url { url: follow.url.clone(), why: why.to_owned() };
    let url = url::Url::parse(&follow.url).map_err(|error| bad(&error.to_string()))?;
    if url.scheme() != "http" {
        return Err(bad("only http is spoken"));
    }
    let host = url.host_str().ok_or_else(|| bad("it has no host"))?;
    let port = url.port_or_known_default().ok_or_else(|| bad("it has no port"))?;
    let path = format!("{}/stream", url.path().trim_end_matches('/'));
    let mut request = Request::post(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::CONTENT_TYPE, MEDIA_TYPE);
    if let Some(token) = &follow.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut greeting = Vec::new();
    greet(&follow.hello, &follow.positions, &mut greeting);
    let says = stream::unfold(Says { greeting: Some(greeting), said, beat: follow.pace.beat }, Says::next);
    let request = request.body(StreamBody::new(says).boxed_unsync());
    // Brackets belong to the URL of an IPv6 address, not to the address.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, port, request.map_err(|error| bad(&error.to_string()))?))
}

/// What the replica says, beats included.
struct Says {
    greeting: Option<Vec<u8>>,
    said: mpsc::Receiver<Up>,
    beat: Duration,
}

impl Says {
    async fn next(mut self) -> Option<(Result<Frame<Bytes>, io::Error>, Says)> {
        let bytes = match self.greeting.take() {
            Some(greeting) => greeting,
            None => {
                let frame = match timeout(self.beat, self.said.recv()).await {
                    Ok(frame) => frame?,
                    Err(_) => Up::Beat,
                };
                let mut bytes = Vec::new();
                frame.write(&mut bytes);
                bytes
            }
        };
        Some((Ok(Frame::data(bytes.into())), self))
    }
}
