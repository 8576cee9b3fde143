//! The API's routes: parse, ask the service, map the error, reply. Must not decide
//! anything.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::words::DbName;

use super::auth;
use super::bridge::{BodyReader, Patience, body_of};
use super::events::{Event, InitData};
use super::halts;
use super::service::{Health, Role, Service, ServiceError, Status};
use super::stream::{Pace, stream as replicate};

/// How much of a refused body is read all the same: a socket that is closed with
/// bytes unread is reset (RFC 9293 §3.10.4), and the client may lose the reply.
pub(super) const UNWANTED: u64 = 256 << 20;

/// What every handler gets.
#[derive(Clone)]
pub struct Shared {
    pub service: Arc<dyn Service>,
    pub token: Option<Arc<str>>,
    /// The server accepts no more; endless replies end.
    pub stopping: CancellationToken,
    pub patience: Patience,
    pub pace: Pace,
}

/// Every route of the API.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/info", get(info))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/events", get(events))
        .route("/promote", post(promote))
        .route("/handoff", post(handoff))
        .route("/export", get(export))
        .route("/import", post(import))
        .route("/stream", post(replicate))
        .route("/halt", post(halts::halt).delete(halts::end_halt))
        .route("/tx", post(halts::tx))
        .layer(from_fn_with_state(shared.clone(), check_token))
        .route("/health", get(health))
        .with_state(shared)
}

async fn check_token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if auth::allows(shared.token.as_deref(), request.headers()) {
        return next.run(request).await;
    }
    let text = "this node's API asks for its token: send `Authorization: Bearer <http.token>`\n";
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
}

async fn info(State(shared): State<Shared>) -> Result<Response, Refusal> {
    ask(&shared, |service| Ok(service.info())).await.and_then(|info| json(&info))
}

async fn status(State(shared): State<Shared>) -> Result<Response, Refusal> {
    ask(&shared, |service| Ok(service.status())).await.and_then(|status| json(&status))
}

async fn health(State(shared): State<Shared>) -> Result<Response, Refusal> {
    Ok(match ask(&shared, |service| Ok(service.health())).await? {
        Health::Ready => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Health::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    })
}

async fn metrics(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let text = ask(&shared, |service| Ok(service.metrics())).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn promote(State(shared): State<Shared>) -> Result<Response, Refusal> {
    ask(&shared, |service| service.promote()).await?;
    Ok(StatusCode::OK.into_response())
}

/// `nodeID` is LiteFS's name for it.
#[derive(Deserialize)]
struct HandoffQuery {
    #[serde(alias = "nodeID")]
    node: String,
}

async fn handoff(
    State(shared): State<Shared>,
    query: Result<Query<HandoffQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|_| bad("handoff needs the other node: POST /handoff?node=ID"))?;
    ask(&shared, move |service| service.handoff(&query.node)).await?;
    Ok(StatusCode::OK.into_response())
}

#[derive(Deserialize)]
struct NameQuery {
    name: String,
}

type Name = Result<Query<NameQuery>, QueryRejection>;

fn db_of(query: Name) -> Result<DbName, Refusal> {
    let Query(query) = query.map_err(|_| bad("the request needs a database: ?name=DB"))?;
    DbName::new(&query.name).map_err(|error| bad(&error.to_string()))
}

async fn export(State(shared): State<Shared>, query: Name) -> Result<Response, Refusal> {
    let db = db_of(query)?;
    let export = ask(&shared, move |service| service.export(&db)).await?;
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/vnd.sqlite3".to_owned()),
        (header::CONTENT_LENGTH.as_str(), export.size.to_string()),
        ("litefs-pos", export.pos.to_string()),
    ];
    Ok((headers, body_of(export.reader, export.size, shared.patience)).into_response())
}

async fn import(State(shared): State<Shared>, query: Name, body: Body) -> Result<Response, Refusal> {
    let db = db_of(query)?;
    let mut body = BodyReader::new(body, shared.patience.clone());
    let pos = ask(&shared, move |service| {
        let done = service.import(&db, &mut body);
        if done.is_err() {
            body.discard(UNWANTED);
        }
        done
    })
    .await?;
    Ok(([("litefs-pos", pos.to_string())], StatusCode::OK).into_response())
}

async fn events(State(shared): State<Shared>) -> Result<Response, Refusal> {
    // Subscribed before the state is read: what happens in between comes twice
    // rather than not at all.
    let listener = shared.service.subscribe();
    let now = ask(&shared, |service| Ok(service.status())).await?;
    let first = Event::Init { data: init(now) };
    let lines = stream::unfold((Some(first), listener, shared.stopping), next_line);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

type Listening = (Option<Event>, super::events::Subscription, CancellationToken);

async fn next_line(
    (first, mut listener, stopping): Listening,
) -> Option<(Result<Bytes, std::io::Error>, Listening)> {
    let event = match first {
        Some(event) => Ok(event),
        None => tokio::select! {
            () = stopping.cancelled() => return None,
            event = listener.recv() => event,
        },
    };
    match event {
        Ok(event) => {
            let line = serde_json::to_vec(&event).map(|mut line| {
                line.push(b'\n');
                Bytes::from(line)
            });
            Some((line.map_err(Into::into), (None, listener, stopping)))
        }
        // A listener that is too far behind starts over with a new `init`.
        Err(RecvError::Lagged(_) | RecvError::Closed) => None,
    }
}

fn init(status: Status) -> InitData {
    let is_primary = status.role == Role::Primary;
    InitData {
        is_primary,
        hostname: status.primary.filter(|_| !is_primary),
        positions: status.databases.into_iter().map(|db| (db.name, db.pos)).collect(),
    }
}

/// Runs a call of the service on a thread where it may block.
pub(super) async fn ask<T: Send + 'static>(
    shared: &Shared,
    call: impl FnOnce(&dyn Service) -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, Refusal> {
    let service = shared.service.clone();
    match tokio::task::spawn_blocking(move || call(service.as_ref())).await {
        Ok(result) => result.map_err(Refusal),
        Err(_) => Err(Refusal(ServiceError::Failed(
            "this request ended in an internal error of the node; its log says more".to_owned(),
        ))),
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Response, Refusal> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        Refusal(ServiceError::Failed(format!("writing the reply as JSON failed: {error}")))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response())
}

pub(super) fn bad(text: &str) -> Refusal {
    Refusal(ServiceError::BadInput(text.to_owned()))
}

/// A service's error as a reply.
pub(super) struct Refusal(pub(super) ServiceError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            ServiceError::NoDatabase(_) => StatusCode::NOT_FOUND,
            ServiceError::NotPrimary { .. } | ServiceError::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            ServiceError::NotSupported(_) => StatusCode::CONFLICT,
            ServiceError::BadInput(_) => StatusCode::BAD_REQUEST,
            ServiceError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{}\n", self.0)).into_response()
    }
}
