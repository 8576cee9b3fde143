//! The halt lock between nodes: its routes, and the client's calls. Must not decide who
//! has the lock.

use std::io::Read;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::Method;
use hyper::http::request::Builder;
use serde::{Deserialize, Serialize};

use super::bridge::BodyReader;
use super::client::{Client, ClientError, none, query, upload};
use super::handlers::{Refusal, Shared, UNWANTED, ask, bad, json};
use crate::words::{ClusterId, DbName, HaltId, NodeId, Pos};

/// LiteFS's names.
const NODE: &str = "litefs-id";
const CLUSTER: &str = "litefs-cluster-id";

/// Which hold of the halt lock a request is about, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltClaim {
    /// The database.
    pub db: DbName,
    /// The hold: made up by the replica.
    pub id: HaltId,
    /// The replica.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
}

/// The halt lock, as the primary gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Halted {
    /// The hold.
    pub id: HaltId,
    /// Where the database stands on the primary.
    pub pos: Pos,
    /// How long the primary keeps it without hearing of it, in milliseconds.
    pub ttl_ms: u64,
}

#[derive(Deserialize)]
pub(super) struct HaltQuery {
    name: String,
    id: String,
    #[serde(default)]
    renew: bool,
    post: Option<String>,
}

type Asked = Result<Query<HaltQuery>, QueryRejection>;

fn claim(query: Asked, headers: &HeaderMap) -> Result<(HaltClaim, HaltQuery), Refusal> {
    let Query(query) = query.map_err(|_| bad("the request needs a database and a lock: ?name=DB&id=ID"))?;
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| bad(&format!("the request needs the header {name}")))
    };
    let claim = HaltClaim {
        db: DbName::new(&query.name).map_err(|error| bad(&error.to_string()))?,
        id: query.id.parse().map_err(|error: String| bad(&error))?,
        node: text(NODE)?.parse().map_err(|error: String| bad(&error))?,
        cluster: text(CLUSTER)?.parse().map_err(|_| bad("the cluster's id cannot be read"))?,
    };
    Ok((claim, query))
}

/// `POST /halt`: gets the lock, or renews it.
pub(super) async fn halt(
    State(shared): State<Shared>,
    headers: HeaderMap,
    query: Asked,
) -> Result<Response, Refusal> {
    let (claim, query) = claim(query, &headers)?;
    if query.renew {
        ask(&shared, move |service| service.renew_halt(&claim)).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let halted = ask(&shared, move |service| service.halt(&claim)).await?;
    json(&halted)
}

/// `DELETE /halt`: gives it back.
pub(super) async fn end_halt(
    State(shared): State<Shared>,
    headers: HeaderMap,
    query: Asked,
) -> Result<Response, Refusal> {
    let (claim, _) = claim(query, &headers)?;
    ask(&shared, move |service| service.end_halt(&claim)).await?;
    Ok(StatusCode::OK.into_response())
}

/// `POST /tx`: a commit of whoever has the lock.
pub(super) async fn tx(
    State(shared): State<Shared>,
    headers: HeaderMap,
    query: Asked,
    body: Body,
) -> Result<Response, Refusal> {
    let (claim, query) = claim(query, &headers)?;
    let post: Pos = query
        .post
        .and_then(|post| post.parse().ok())
        .ok_or_else(|| bad("the request needs the position after the transaction: post=TXID/CHECKSUM"))?;
    let mut body = BodyReader::new(body, shared.patience.clone());
    ask(&shared, move |service| {
        let done = service.take_tx(&claim, post, &mut body);
        if done.is_err() {
            body.discard(UNWANTED);
        }
        done
    })
    .await?;
    Ok(StatusCode::OK.into_response())
}

impl Client {
    /// Asks the primary for the halt lock.
    pub fn halt(&self, claim: &HaltClaim) -> Result<Halted, ClientError> {
        self.block_on(async {
            let request = self.claiming(Method::POST, "/halt", claim, "");
            let reply = self.send(request, none(), self.timeouts().long).await?;
            let body = self.text_of(reply).await?;
            serde_json::from_slice(&body).map_err(|error| {
                self.broken(&format!("the reply to /halt is not what this version expects ({error})"))
            })
        })
    }

    /// Says that it is still needed.
    pub fn renew_halt(&self, claim: &HaltClaim) -> Result<(), ClientError> {
        self.block_on(async {
            let request = self.claiming(Method::POST, "/halt", claim, "&renew=true");
            self.send(request, none(), self.timeouts().reply).await.map(drop)
        })
    }

    /// Gives it back.
    pub fn end_halt(&self, claim: &HaltClaim) -> Result<(), ClientError> {
        self.block_on(async {
            let request = self.claiming(Method::DELETE, "/halt", claim, "");
            self.send(request, none(), self.timeouts().reply).await.map(drop)
        })
    }

    /// Sends a commit under it, `size` bytes of LTX that leads to `post`; when this returns
    /// the primary has it.
    pub fn send_tx(
        &self,
        claim: &HaltClaim,
        post: Pos,
        ltx: impl Read + Send + 'static,
        size: u64,
    ) -> Result<(), ClientError> {
        self.block_on(async {
            let more = format!("&{}", query("post", &post.to_string()));
            let request =
                self.claiming(Method::POST, "/tx", claim, &more).header(header::CONTENT_LENGTH, size);
            self.send(request, upload(ltx, size, |_, _| ()), self.timeouts().long).await.map(drop)
        })
    }

    fn claiming(&self, method: Method, path: &str, claim: &HaltClaim, more: &str) -> Builder {
        let path = format!("{path}?{}&id={}{more}", query("name", claim.db.as_str()), claim.id);
        self.request(method, &path)
            .header(NODE, claim.node.to_string())
            .header(CLUSTER, claim.cluster.to_string())
    }
}
