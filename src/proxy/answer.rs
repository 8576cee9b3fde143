//! What the proxy answers by itself, and why it could not do what was asked. Must not
//! decide it.

use std::time::Duration;

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::body::Reply;
use super::token::Seen;
use super::upstream::UpstreamError;
use crate::words::{DbName, Pos};

/// Why a request is not passed on, or has no reply.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// This node did not get to what the client has seen.
    #[error(
        "this node has database {db} at {pos}, and its client has seen transaction {txid}: waited {waited:?} for it in \
         vain; {why}",
        txid = seen.txid
    )]
    Behind {
        /// Which database.
        db: DbName,
        /// Where it stands here.
        pos: Pos,
        /// What the client has seen.
        seen: Seen,
        /// How long it waited.
        waited: Duration,
        /// What keeps it.
        why: String,
    },
    /// Nobody may write.
    #[error("no node is the primary, and none became it within {waited:?}: nothing was written; try again")]
    NoPrimary {
        /// How long it waited.
        waited: Duration,
    },
    /// The primary could not be reached: nothing was sent.
    #[error("the primary {hostname} takes no writes from here: {why}; nothing was written; try again")]
    PrimaryAway {
        /// Which.
        hostname: String,
        /// Why.
        why: String,
    },
    /// The request went from proxy to proxy and found no primary.
    #[error(
        "the request was passed on to this node as the primary, and it is not (it takes {primary} for it), nor became \
         it within {waited:?}: nothing was written; try again"
    )]
    Loop {
        /// Whom this node takes for the primary.
        primary: String,
        /// How long it waited.
        waited: Duration,
    },
    /// The application or the primary's proxy.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The other side changed to a protocol that nobody asked for.
    #[error("{address} changed the protocol though the client had not asked for it")]
    Protocol {
        /// Where.
        address: String,
    },
    /// A method that makes no sense here.
    #[error("this is no general proxy: CONNECT is not supported")]
    Connect,
    /// This node may not serve.
    #[error("{0}")]
    Unhealthy(String),
    /// Only a primary says where it stands.
    #[error("this node is not the primary")]
    NotPrimary,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Behind { .. } => StatusCode::GATEWAY_TIMEOUT,
            Refusal::NoPrimary { .. }
            | Refusal::PrimaryAway { .. }
            | Refusal::Loop { .. }
            | Refusal::Unhealthy(_)
            | Refusal::NotPrimary => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Upstream(_) | Refusal::Protocol { .. } => StatusCode::BAD_GATEWAY,
            Refusal::Connect => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// The reply that says so.
    pub fn reply(&self) -> Response<Reply> {
        let mut reply = text(self.status(), format!("litefs: {self}\n"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        reply
    }
}

/// A reply in words.
pub fn text(status: StatusCode, text: String) -> Response<Reply> {
    let mut reply = Response::new(Reply::Own(Some(text.into())));
    *reply.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, plain);
    // It says how things are at this moment.
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
