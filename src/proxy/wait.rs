//! Waiting: for a database to get to where a client has seen it, for a primary. Woken
//! by what changes, never by a timer, and never for longer than a request may wait. Must
//! not know HTTP beyond the question where a primary stands.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Limited};
use hyper::header;
use hyper::{Request, StatusCode, Uri};
use tokio::time::{sleep, sleep_until, timeout};

use super::answer::Refusal;
use super::body::Outgoing;
use super::gate::Pass;
use super::handle::Shared;
use super::rules::POSITION;
use super::token::{Seen, Token};
use super::upstream::Upstream;
use super::view::{Primary, Role};
use crate::words::DbName;

/// How long a replica may be behind before its proxy asks the primary whether the
/// client's branch has lost; replication takes milliseconds.
const ASK_AFTER: Duration = Duration::from_millis(200);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// More than any token has.
const LONGEST_ANSWER: usize = 64 << 10;

/// Where a request that writes goes.
#[derive(Debug)]
pub enum Route {
    /// To this node's application; as long as the pass lives, this node stays the primary
    /// if that is its own choice.
    Here(Pass),
    /// To the primary.
    There(Primary),
}

/// Whether another node will do for a request that writes. It may have been there: who
/// passed it on took this one for the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Yes.
    AtOnce,
    /// Only if it still looks so then.
    After(Instant),
    /// No more.
    Never,
}

/// Waits until this node has what its client has seen. Returns whether the client has
/// seen a branch that lost, and should forget it.
pub async fn for_position(shared: &Shared, token: &Token) -> Result<bool, Refusal> {
    let view = &*shared.view;
    let mut unmet: Vec<(DbName, Seen)> = token.iter().map(|(db, seen)| (db.clone(), seen)).collect();
    if unmet.is_empty() {
        return Ok(false);
    }
    let mut lost = false;
    let mut changes = view.changes();
    let deadline = Instant::now() + shared.wait_timeout;
    // Goes on through every change: where much changes, it would never get to ask.
    let mut asking = std::pin::pin!(lost_branches(shared, unmet.clone()));
    loop {
        changes.borrow_and_update();
        unmet.retain(|(db, seen)| !seen.is_met_by(view.pos(db)));
        let Some((db, seen)) = unmet.first() else { return Ok(lost) };
        let primary = match view.role() {
            // Nobody is ahead of the primary: what it has not, nobody will get.
            Role::Primary => return Ok(true),
            Role::Replica { primary } => primary,
        };
        if primary.is_none() {
            view.want_primary();
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| stopping())?,
            gone = asking.as_mut() => {
                lost = true;
                unmet.retain(|(db, _)| !gone.contains(db));
                asking.set(lost_branches(shared, unmet.clone()));
            }
            () = sleep_until(deadline.into()) => {
                let why = match primary {
                    Some(Primary { hostname, .. }) => format!("the primary is {hostname}"),
                    None => "there is no primary from which it could come".to_owned(),
                };
                let (pos, waited) = (view.pos(db), shared.wait_timeout);
                return Err(Refusal::Behind { db: db.clone(), pos, seen: *seen, waited, why });
            }
        }
    }
}

fn stopping() -> Refusal {
    Refusal::Unhealthy("the node is stopping".to_owned())
}

/// Those databases of which the primary says that it is not ahead of the client, on
/// another branch. Waits until there are any.
async fn lost_branches(shared: &Shared, unmet: Vec<(DbName, Seen)>) -> Vec<DbName> {
    let mut pause = ASK_AFTER;
    loop {
        sleep(pause).await;
        pause = ASK_AGAIN;
        let Role::Replica { primary: Some(Primary { proxy: Some(address), .. }) } = shared.view.role() else {
            continue;
        };
        // A primary that does not answer now may later.
        let Ok(Some(stands)) = timeout(ANSWER_WITHIN, ask(shared, &shared.peer(&address))).await else {
            continue;
        };
        let pos = |db: &DbName| stands.get(db).and_then(|seen| seen.as_pos());
        let lost = |(db, seen): &&(DbName, Seen)| pos(db).is_some_and(|pos| seen.is_lost_to(pos));
        let gone: Vec<DbName> = unmet.iter().filter(lost).map(|(db, _)| db.clone()).collect();
        if !gone.is_empty() {
            return gone;
        }
    }
}

/// Where the primary stands.
async fn ask(shared: &Shared, primary: &std::sync::Arc<Upstream>) -> Option<Token> {
    let mut request = Request::new(Outgoing::Empty);
    *request.uri_mut() = Uri::from_static(POSITION);
    let host = primary.address().as_str().parse().ok()?;
    request.headers_mut().insert(header::HOST, host);
    let loan = primary.connect(true).await.ok()?;
    let (reply, loan) = primary.send(loan, request).await.ok()?;
    if reply.status() != StatusCode::OK {
        return None;
    }
    let text = Limited::new(reply.into_body(), LONGEST_ANSWER).collect().await.ok()?.to_bytes();
    loan.give_back();
    let text = std::str::from_utf8(&text).ok()?;
    Some(Token::parse(text.trim(), &shared.tracked))
}

/// Waits for a primary, or for this node to become it.
pub async fn for_primary(shared: &Shared, others: Others, deadline: Instant) -> Result<Route, Refusal> {
    let view = &*shared.view;
    let mut changes = view.changes();
    let mut opened = shared.gate.opened();
    loop {
        changes.borrow_and_update();
        opened.borrow_and_update();
        let another_will_do = match others {
            Others::AtOnce => true,
            Others::After(then) => Instant::now() >= then,
            Others::Never => false,
        };
        // Before its role is asked for: it would not be let go of in between.
        let pass = shared.gate.enter();
        let other = match (view.role(), pass) {
            (Role::Primary, Some(pass)) => return Ok(Route::Here(pass)),
            (Role::Primary, None) => None,
            (Role::Replica { primary: Some(primary) }, _) if another_will_do => {
                return Ok(Route::There(primary));
            }
            (Role::Replica { primary }, _) => {
                if primary.is_none() {
                    view.want_primary();
                }
                primary
            }
        };
        let waited = shared.wait_timeout;
        let then = match others {
            Others::After(then) if !another_will_do => then.min(deadline),
            Others::AtOnce | Others::After(_) | Others::Never => deadline,
        };
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| stopping())?,
            open = opened.changed() => open.map_err(|_| stopping())?,
            () = sleep_until(then.into()) => {
                if then < deadline {
                    continue;
                }
                return Err(match other {
                    Some(primary) => Refusal::Loop { primary: primary.hostname, waited },
                    None => Refusal::NoPrimary { waited },
                });
            }
        }
    }
}
