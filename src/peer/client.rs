//! The API's client, blocking, for the command line. Every wait is bounded: to
//! connect, for the reply's headers, for the next byte of a body. Must not retry:
//! the caller knows what is safe to repeat.

use std::io::{self, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::{Client as Legacy, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::words::{DbName, Pos};

use super::service::{Info, Status};

/// More than any reply but a database has.
const MAX_REPLY: usize = 64 << 20;
const BLOCK: usize = 256 << 10;

/// How long the client waits.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// For the headers of a reply to a question.
    pub reply: Duration,
    /// For the reply to what takes long: promote, handoff, the end of an import.
    pub long: Duration,
    /// For the next byte of a body.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            reply: Duration::from_secs(15),
            long: Duration::from_secs(600),
            stall: Duration::from_secs(60),
        }
    }
}

/// A call to a node's API failed. Texts name the node's address.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{url:?} is not the address of a node's API: {why}; it looks like http://127.0.0.1:20202")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// No node answers there.
    #[error(
        "no litefs node answers at {url}: {why}; is `litefs mount` running there, is the address its http.addr?"
    )]
    NoNode {
        /// The address.
        url: String,
        /// Why.
        why: String,
    },
    /// The node refused or failed; its words.
    #[error("the node at {url} answered: {text}")]
    Answer {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// The connection broke off or stood still.
    #[error("the connection to the node at {url} broke off: {why}; nothing was changed here, try again")]
    Broken {
        /// The address.
        url: String,
        /// Why.
        why: String,
    },
    /// A local file could not be read or written.
    #[error("{0}")]
    Local(io::Error),
}

pub(super) type ClientBody = UnsyncBoxBody<Bytes, io::Error>;

/// A client of one node. Must not be used from an asynchronous context.
pub struct Client {
    url: String,
    token: Option<String>,
    timeouts: Timeouts,
    http: Legacy<HttpConnector, ClientBody>,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A client of the node whose API is at `url`.
    pub fn new(url: &str, token: Option<String>, timeouts: Timeouts) -> Result<Client, ClientError> {
        let bad = |why: &str| ClientError::Url { url: url.to_owned(), why: why.to_owned() };
        let parsed = url::Url::parse(url).map_err(|error| bad(&error.to_string()))?;
        if parsed.scheme() != "http" {
            return Err(bad("only http is spoken"));
        }
        if parsed.host_str().is_none() || parsed.query().is_some() {
            return Err(bad("it needs a host and no query"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(ClientError::Local)?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(timeouts.connect));
        connector.set_nodelay(true);
        let http = Legacy::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        Ok(Client { url: parsed.as_str().trim_end_matches('/').to_owned(), token, timeouts, http, runtime })
    }

    /// Who the node is.
    pub fn info(&self) -> Result<Info, ClientError> {
        self.question("/info")
    }

    /// Its state.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.question("/status")
    }

    /// Makes the node the primary.
    pub fn promote(&self) -> Result<(), ClientError> {
        self.order("/promote".to_owned())
    }

    /// Makes the node give its lease to another one.
    pub fn handoff(&self, node: &str) -> Result<(), ClientError> {
        self.order(format!("/handoff?{}", query("node", node)))
    }

    /// Writes a database to `to`; `progress` is told bytes so far and the size.
    /// Returns the position of the image.
    pub fn export(
        &self,
        db: &DbName,
        to: &mut dyn Write,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Pos, ClientError> {
        let path = format!("/export?{}", query("name", db.as_str()));
        self.runtime.block_on(async {
            let reply = self.send(self.request(Method::GET, &path), none(), self.timeouts.long).await?;
            let pos = self.pos_of(&reply)?;
            let size = reply.headers().get(header::CONTENT_LENGTH).and_then(|size| size.to_str().ok());
            let size = size.and_then(|size| size.parse::<u64>().ok());
            let size = size.ok_or_else(|| self.broken("the reply has no length"))?;
            let mut body = reply.into_body();
            let mut have = 0;
            while let Some(frame) = timeout(self.timeouts.stall, body.frame())
                .await
                .map_err(|_| self.broken("it sent nothing for too long"))?
            {
                let frame = frame.map_err(|error| self.broken(&cause(&error)))?;
                if let Ok(block) = frame.into_data() {
                    to.write_all(&block).map_err(ClientError::Local)?;
                    have += block.len() as u64;
                    progress(have, size);
                }
            }
            if have == size { Ok(pos) } else { Err(self.broken(&format!("{have} of {size} bytes came"))) }
        })
    }

    /// Replaces a database by what `from` gives, `size` bytes. Returns the
    /// position after it.
    pub fn import(
        &self,
        db: &DbName,
        from: impl Read + Send + 'static,
        size: u64,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Pos, ClientError> {
        let path = format!("/import?{}", query("name", db.as_str()));
        self.runtime.block_on(async {
            let body = upload(from, size, progress);
            let request = self.request(Method::POST, &path).header(header::CONTENT_LENGTH, size);
            let reply = self.send(request, body, self.timeouts.long).await?;
            self.pos_of(&reply)
        })
    }

    fn question<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            let reply = self.send(self.request(Method::GET, path), none(), self.timeouts.reply).await?;
            let body = self.text_of(reply).await?;
            serde_json::from_slice(&body).map_err(|error| {
                self.broken(&format!("the reply to {path} is not what this version expects ({error})"))
            })
        })
    }

    fn order(&self, path: String) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            self.send(self.request(Method::POST, &path), none(), self.timeouts.long).await.map(drop)
        })
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request and returns a reply that says yes.
    pub(super) async fn send(
        &self,
        request: Builder,
        body: ClientBody,
        patience: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = request
            .body(body)
            .map_err(|error| ClientError::Url { url: self.url.clone(), why: error.to_string() })?;
        let reply = match timeout(patience, self.http.request(request)).await {
            Err(_) => return Err(self.no_node(&format!("no answer within {} s", patience.as_secs()))),
            Ok(Err(error)) if error.is_connect() => return Err(self.no_node(&cause(&error))),
            Ok(Err(error)) => return Err(self.broken(&cause(&error))),
            Ok(Ok(reply)) => reply,
        };
        if reply.status() == StatusCode::OK {
            return Ok(reply);
        }
        let status = reply.status();
        let text = self.text_of(reply).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        let text = if text.is_empty() { status.to_string() } else { text };
        Err(ClientError::Answer { url: self.url.clone(), status: status.as_u16(), text })
    }

    pub(super) async fn text_of(&self, reply: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(reply.into_body(), MAX_REPLY).collect();
        match timeout(self.timeouts.stall, body).await {
            Err(_) => Err(self.broken("it sent nothing for too long")),
            Ok(Err(error)) => Err(self.broken(&error.to_string())),
            Ok(Ok(body)) => Ok(body.to_bytes()),
        }
    }

    fn pos_of(&self, reply: &Response<Incoming>) -> Result<Pos, ClientError> {
        let pos = reply.headers().get("litefs-pos").and_then(|pos| pos.to_str().ok());
        pos.and_then(|pos| pos.parse().ok()).ok_or_else(|| self.broken("the reply names no position"))
    }

    fn no_node(&self, why: &str) -> ClientError {
        ClientError::NoNode { url: self.url.clone(), why: why.to_owned() }
    }

    pub(super) fn broken(&self, why: &str) -> ClientError {
        ClientError::Broken { url: self.url.clone(), why: why.to_owned() }
    }
}

pub(super) fn query(key: &str, value: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair(key, value).finish()
}

pub(super) fn none() -> ClientBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The innermost reason: the outer ones say "client error" only.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// A body of `size` bytes read from `from` as the node takes them. A read that
/// fails or ends early breaks it off, and the node keeps what it had.
pub(super) fn upload(
    from: impl Read + Send + 'static,
    size: u64,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> ClientBody {
    let blocks =
        stream::try_unfold((from, progress, 0u64), move |(mut from, mut progress, sent)| async move {
            let want = usize::try_from(size - sent).unwrap_or(BLOCK).min(BLOCK);
            if want == 0 {
                return Ok(None);
            }
            let mut block = vec![0; want];
            // A read of a local file, on a runtime that has nothing else to do.
            let count = from.read(&mut block)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            block.truncate(count);
            let sent = sent + count as u64;
            progress(sent, size);
            Ok(Some((Frame::data(Bytes::from(block)), (from, progress, sent))))
        });
    StreamBody::new(blocks).boxed_unsync()
}
