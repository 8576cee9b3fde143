//! One request: what it is, where it goes, what comes back. Must not wait without a
//! bound, and must not hold more than a block of a body.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::answer::{Refusal, text};
use super::body::{Outgoing, Reply};
use super::gate::Gate;
use super::headers;
use super::rules::{Kind, Rules};
use super::server::ProxyOptions;
use super::token::Token;
use super::tunnel;
use super::upstream::{Address, Loan, Upstream, repeatable};
use super::view::{Forward, Primary, Role, View};
use super::wait::{self, Others, Route};
use crate::words::DbName;

/// A request is passed on at once this often: the lease may move while it is under way.
const HASTY_HOPS: u32 = 2;
/// And this often after a pause: two nodes may take each other for the primary for a
/// moment, but it must not go round for ever.
const MOST_HOPS: u32 = 16;
/// How soon a primary that could not be reached is tried again, unless something changes.
const AGAIN: Duration = Duration::from_millis(100);

/// What every request gets.
pub struct Shared {
    pub view: Arc<dyn View>,
    pub gate: Arc<Gate>,
    pub rules: Rules,
    pub tracked: Vec<DbName>,
    pub forward: Forward,
    pub wait_timeout: Duration,
    pub application: Arc<Upstream>,
    /// The proxy of the node that was the primary last.
    pub peer: Mutex<Option<Arc<Upstream>>>,
    pub ending: CancellationToken,
}

/// Who asks.
#[derive(Clone)]
pub struct Client {
    pub addr: SocketAddr,
    /// Its place among the connections, free when nobody holds it.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Client {
    /// Who is at `addr`.
    pub fn new(addr: SocketAddr, permit: OwnedSemaphorePermit) -> Client {
        Client { addr, _permit: Arc::new(permit) }
    }
}

impl Shared {
    pub fn new(
        options: &ProxyOptions,
        view: Arc<dyn View>,
        gate: Arc<Gate>,
        ending: CancellationToken,
    ) -> Shared {
        Shared {
            view,
            gate,
            rules: Rules::new(&options.passthrough, &options.always_forward),
            tracked: options.databases.clone(),
            forward: options.forward,
            wait_timeout: options.wait_timeout,
            application: Upstream::new(options.target.clone()),
            peer: Mutex::default(),
            ending,
        }
    }

    /// The connections to another node's proxy.
    pub fn peer(&self, address: &Address) -> Arc<Upstream> {
        let mut peer = self.peer.lock();
        match &*peer {
            Some(known) if known.address() == address => Arc::clone(known),
            _ => {
                let fresh = Upstream::new(address.clone());
                *peer = Some(Arc::clone(&fresh));
                fresh
            }
        }
    }

    fn here(&self) -> Token {
        let mut token = Token::default();
        self.tracked.iter().for_each(|db| token.see(db, self.view.pos(db).into()));
        token
    }
}

/// Answers a request.
pub async fn handle(
    shared: Arc<Shared>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let reply = route(&shared, &client, request).await;
    Ok(reply.unwrap_or_else(|refusal| {
        tracing::debug!(%method, %uri, client = %client.addr, %refusal, "a request was refused");
        refusal.reply()
    }))
}

async fn route(
    shared: &Arc<Shared>,
    client: &Client,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    match shared.rules.kind(request.method(), request.uri().path()) {
        Kind::Passthrough => to_application(shared, Passing::new(request, client)).await,
        Kind::Health => match shared.view.health() {
            Ok(()) => Ok(text(StatusCode::OK, "OK\n".to_owned())),
            Err(why) => Err(Refusal::Unhealthy(why)),
        },
        Kind::Position => match shared.view.role() {
            Role::Primary => Ok(text(StatusCode::OK, format!("{}\n", shared.here().text(&shared.tracked)))),
            Role::Replica { .. } => Err(Refusal::NotPrimary),
        },
        Kind::Read => read(shared, client, request).await,
        Kind::Write => write(shared, client, request).await,
    }
}

async fn read(
    shared: &Arc<Shared>,
    client: &Client,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Refusal> {
    let token = headers::token(request.headers(), &shared.tracked);
    let lost = wait::for_position(shared, &token).await?;
    let reply = to_application(shared, Passing::new(request, client)).await;
    if !lost {
        return reply;
    }
    // What it saw is gone: it goes on from what it sees now.
    let mut reply = reply?;
    headers::give(reply.headers_mut(), &shared.here(), &shared.tracked);
    Ok(reply)
}

async fn write(
    shared: &Arc<Shared>,
    client: &Client,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Refusal> {
    let deadline = Instant::now() + shared.wait_timeout;
    let hops = headers::hops(request.headers());
    loop {
        let others = match hops {
            ..HASTY_HOPS => Others::AtOnce,
            HASTY_HOPS..MOST_HOPS => Others::After(Instant::now() + AGAIN),
            MOST_HOPS.. => Others::Never,
        };
        let primary = match wait::for_primary(shared, others, deadline).await? {
            Route::Here(_pass) => return write_here(shared, Passing::new(request, client)).await,
            Route::There(primary) => primary,
        };
        if shared.forward == Forward::FlyReplay {
            return Ok(replay(&primary));
        }
        let why = match &primary.proxy {
            Some(address) => {
                let peer = shared.peer(address);
                match peer.connect(repeatable(&request)).await {
                    Ok(loan) => {
                        let mut passing = Passing::new(request, client);
                        let hops = HeaderValue::from(hops + 1);
                        passing.request.headers_mut().insert(headers::HOPS, hops);
                        return exchange(shared, &peer, loan, passing).await;
                    }
                    Err(error) => error.to_string(),
                }
            }
            None => "it does not say where its proxy listens (proxy.advertise-url on that node)".to_owned(),
        };
        // It may have gone without a word: then this node may be next.
        shared.view.want_primary();
        if Instant::now() + AGAIN >= deadline {
            return Err(Refusal::PrimaryAway { hostname: primary.hostname, why });
        }
        // It may be another one by then.
        let _ = tokio::time::timeout(AGAIN, shared.view.changes().changed()).await;
    }
}

/// What LiteFS answers for Fly.io's router.
fn replay(primary: &Primary) -> Response<Reply> {
    let mut reply = Response::new(Reply::Own(None));
    if let Ok(instance) = HeaderValue::try_from(format!("instance={}", primary.hostname)) {
        reply.headers_mut().insert(headers::FLY_REPLAY, instance);
    }
    reply
}

/// Writes by this node's application; its client then knows up to where.
async fn write_here(shared: &Arc<Shared>, passing: Passing) -> Result<Response<Reply>, Refusal> {
    let mut reply = to_application(shared, passing).await?;
    let settling = Arc::clone(shared);
    let settle = move || {
        let mut token = Token::default();
        for db in &settling.tracked {
            let pos = settling.view.settled_pos(db).unwrap_or_else(|error| {
                tracing::warn!(%db, %error, "the position after a write is not known: its client may read older data on another node");
                settling.view.pos(db)
            });
            token.see(db, pos.into());
        }
        token
    };
    if let Ok(token) = tokio::task::spawn_blocking(settle).await {
        headers::give(reply.headers_mut(), &token, &shared.tracked);
    }
    Ok(reply)
}

async fn to_application(shared: &Arc<Shared>, passing: Passing) -> Result<Response<Reply>, Refusal> {
    let deadline = Instant::now() + shared.wait_timeout;
    let application = &shared.application;
    let loan = application.connect_until(repeatable(&passing.request), deadline).await?;
    exchange(shared, application, loan, passing).await
}

/// A request made ready to be passed on.
struct Passing {
    request: Request<Outgoing>,
    client: Client,
    upgrade: Option<(HeaderValue, hyper::upgrade::OnUpgrade)>,
}

impl Passing {
    fn new(mut request: Request<Incoming>, client: &Client) -> Passing {
        let protocol = headers::strip(request.headers_mut());
        let upgrade = protocol.map(|protocol| {
            headers::upgrade(request.headers_mut(), protocol.clone());
            (protocol, hyper::upgrade::on(&mut request))
        });
        // The proxy has answered it already (RFC 9110 §10.1.1).
        request.headers_mut().remove(header::EXPECT);
        headers::say_who(request.headers_mut(), client.addr);
        *request.version_mut() = Version::HTTP_11;
        let request = request.map(Outgoing::Client);
        Passing { request, client: client.clone(), upgrade }
    }

    /// An address without the host, which has its header; of a request that came
    /// without one, the other side's.
    fn aim(&mut self, upstream: &Upstream) {
        let uri = self.request.uri();
        if uri.authority().is_some() || uri.scheme().is_some() {
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            if let Ok(path) = path.parse::<Uri>() {
                *self.request.uri_mut() = path;
            }
        }
        if !self.request.headers().contains_key(header::HOST)
            && let Ok(host) = HeaderValue::try_from(upstream.address().as_str())
        {
            self.request.headers_mut().insert(header::HOST, host);
        }
    }
}

async fn exchange(
    shared: &Shared,
    upstream: &Arc<Upstream>,
    loan: Loan,
    mut passing: Passing,
) -> Result<Response<Reply>, Refusal> {
    passing.aim(upstream);
    let (mut reply, loan) = upstream.send(loan, passing.request).await?;
    headers::strip(reply.headers_mut());
    *reply.version_mut() = Version::HTTP_11;
    if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(reply.map(|body| Reply::passed(body, loan)));
    }
    let address = upstream.address().to_string();
    let Some((protocol, client)) = passing.upgrade else { return Err(Refusal::Protocol { address }) };
    let other = hyper::upgrade::on(&mut reply);
    headers::upgrade(reply.headers_mut(), protocol);
    tunnel::join(client, other, passing.client, shared.ending.clone());
    Ok(reply.map(|_| Reply::Own(None)))
}
