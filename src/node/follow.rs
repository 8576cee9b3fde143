//! Following on a replica: one thread that follows the primary itself where it can be
//! reached (`live`), and else asks the archive for the next segment, and brings the
//! databases to it while applications read. Frugal: one key, no listing, and more and
//! more seldom while nothing comes. Must not take the lease or write the archive.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::archive::Progress;
use crate::lease::Lease;
use crate::peer::stream::Pace as StreamPace;
use crate::peer::wire::{ChangeHead, Hello};
use crate::peer::{Event, TxData};
use crate::words::{DbName, NodeId};

use super::NodeError;
use super::align::{Aim, How, align};
use super::join::{Joined, waits_serving};
use super::live::{Follower, Lead, Live, Over};
use super::run::{Node, Notice};
use super::service::NodeService;

/// How seldom the archive is asked at the most, and how often at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// How long an application that is in a database's way is waited for, before the other
/// databases get their turn.
pub(super) const READERS: Duration = Duration::from_secs(5);

/// How soon a primary that does not answer is tried again, at first and at the most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How long a new primary has to say, over its stream, what of that which waits here it
/// has, before that is taken for lost.
const VERDICT: Duration = Duration::from_secs(10);

/// How often the archive is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// From time to time.
    Steady,
    /// When there is a reason to.
    WhenAsked,
}

#[derive(Default)]
struct State {
    stop: bool,
    nudged: bool,
}

/// What the thread and its owner share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    /// The archive was never read.
    blind: AtomicBool,
    /// The primary that is followed, and what ends that.
    followed: Mutex<Option<(NodeId, CancellationToken)>>,
}

impl Shared {
    /// Waits for `pause` (for ever, if there is none), or a nudge; false if it is to stop.
    fn pause(&self, pause: Option<Duration>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |state: &mut State| !state.stop && !state.nudged;
        let mut state = match pause {
            Some(pause) => {
                let waited = self.changed.wait_timeout_while(state, pause, quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait_while(state, quiet).unwrap_or_else(PoisonError::into_inner),
        };
        state.nudged = false;
        !state.stop
    }

    fn stops(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends the stream that is followed if it is not from `primary`.
    fn unless_from(&self, primary: Option<NodeId>) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((node, stream)) = &*followed
            && primary != Some(*node)
        {
            stream.cancel();
        }
    }
}

/// The thread that follows; it ends when dropped.
pub(super) struct Following {
    shared: Arc<Shared>,
    service: Arc<NodeService>,
    thread: Option<JoinHandle<Option<Joined>>>,
}

impl Following {
    /// Follows from `joined` on; `None`: the archive could not be read yet.
    /// `lease` is looked at when the primary is gone, and each time by a node that does
    /// not want it, to know who has it.
    pub fn start(
        node: &Arc<Node>,
        joined: Option<Joined>,
        pace: Pace,
        lease: Arc<dyn Lease>,
    ) -> Result<Following, NodeError> {
        let shared = Arc::new(Shared::default());
        shared.blind.store(joined.is_none(), Ordering::Release);
        let live = Live::new(Arc::clone(&node.store), Arc::clone(&node.options.clock), READERS);
        let live = Arc::new(live.map_err(NodeError::io("starting to follow the primary"))?);
        let (node_of, shared_of) = (Arc::clone(node), Arc::clone(&shared));
        let retry = Retry { pause: FIRST_RETRY, due: Instant::now() };
        let thread =
            Thread { node: node_of, shared: shared_of, joined, pace, lease, live, retry, overruled: None };
        let builder = std::thread::Builder::new().name("litefs-follow".to_owned());
        let thread =
            builder.spawn(move || thread.run()).map_err(NodeError::io("starting to follow the archive"))?;
        Ok(Following { shared, service: Arc::clone(&node.service), thread: Some(thread) })
    }

    /// Whether the archive could not be read since the node started.
    pub fn is_blind(&self) -> bool {
        self.shared.blind.load(Ordering::Acquire)
    }

    /// There may be news, of the lease or otherwise.
    pub fn nudge(&self) {
        self.shared
            .unless_from(self.service.parts(|parts| parts.primary.as_ref().map(|primary| primary.node)));
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).nudged = true;
        self.shared.changed.notify_all();
    }

    /// Ends it; the head that it stood at.
    pub fn stop(mut self) -> Option<Joined> {
        self.end()
    }

    fn end(&mut self) -> Option<Joined> {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.unless_from(None);
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.changed.notify_all();
        self.thread.take().and_then(|thread| thread.join().ok()).flatten()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.end();
    }
}

struct Thread {
    node: Arc<Node>,
    shared: Arc<Shared>,
    joined: Option<Joined>,
    pace: Pace,
    lease: Arc<dyn Lease>,
    live: Arc<Live>,
    retry: Retry,
    /// Since when another writer than that of what is here is known.
    overruled: Option<Instant>,
}

/// When a primary that did not answer is tried again.
struct Retry {
    pause: Duration,
    due: Instant,
}

impl Retry {
    /// It did not answer: later, and not all replicas at the same time.
    fn later(&mut self, random: u64) {
        self.due = Instant::now() + self.pause / 2 + self.pause.mul_f64((random % 1000) as f64 / 1000.0);
        self.pause = (self.pause * 2).min(LONGEST_RETRY);
    }

    /// It did.
    fn worked(&mut self) {
        *self = Retry { pause: FIRST_RETRY, due: Instant::now() + FIRST_RETRY };
    }
}

/// What one look at the archive came to.
enum Look {
    News,
    Nothing,
    Again(String),
    Failed(NodeError),
}

impl Thread {
    fn run(mut self) -> Option<Joined> {
        let shortest = self.node.options.sync_interval.max(SHORTEST_PAUSE);
        let mut pause = shortest;
        let mut trouble = false;
        loop {
            match self.follow_primary() {
                Ok(true) => pause = Duration::ZERO,
                Ok(false) => {}
                Err(error) => {
                    let _ = self.node.notices.send(Notice::Failed(error));
                    return self.joined;
                }
            }
            let led = self.lead().is_some();
            let idle =
                self.joined.is_some() && !trouble && !led && self.pace == Pace::WhenAsked && pause > shortest;
            let until = match led {
                true => pause.min(self.retry.due.saturating_duration_since(Instant::now())),
                false => pause,
            };
            if !self.shared.pause(if idle { None } else { Some(until) }) {
                return self.joined;
            }
            if until < pause {
                pause -= until;
                continue;
            }
            if !self.node.options.candidate {
                self.lease.look();
            }
            let look = match self.joined {
                Some(_) => self.look(None),
                None => self.join(),
            };
            match look {
                Look::News => pause = shortest,
                Look::Nothing => pause = (pause * 2).min(LONGEST_PAUSE.max(shortest)),
                Look::Again(why) => {
                    if !trouble {
                        tracing::warn!(error = why, "the archive cannot be followed: serving what is here");
                        trouble = true;
                    }
                    self.node.service.update(|parts| parts.waiting_for = Some(why));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                Look::Failed(error) => {
                    let _ = self.node.notices.send(Notice::Failed(error));
                    return self.joined;
                }
            }
            if std::mem::take(&mut trouble) {
                tracing::info!("the archive can be followed again");
            }
            self.node.service.update(|parts| parts.waiting_for = None);
        }
    }

    /// The primary, if there is one that can be followed.
    fn lead(&self) -> Option<(NodeId, Lead)> {
        self.joined.as_ref()?;
        let primary = self.node.service.parts(|parts| parts.primary.clone())?;
        let hello = Hello {
            cluster: self.node.store.cluster()?,
            node: self.node.store.node_id(),
            hostname: self.node.options.hostname.clone(),
        };
        let token = self.node.options.http.1.clone();
        let lead = Lead { url: primary.advertise_url?, token, hello, pace: StreamPace::default() };
        Some((primary.node, lead))
    }

    /// Follows the primary as long as that works; whether it did.
    fn follow_primary(&mut self) -> Result<bool, NodeError> {
        let Some((primary, lead)) = self.lead().filter(|_| self.retry.due <= Instant::now()) else {
            return Ok(false);
        };
        let cancel = CancellationToken::new();
        *self.shared.followed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((primary, cancel.clone()));
        if self.shared.stops() {
            return Ok(false);
        }
        let live = Arc::clone(&self.live);
        let (began, over) = live.follow(&lead, &cancel, self);
        *self.shared.followed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match (began, &over) {
            (_, Over::Cancelled) => {}
            (true, over) => {
                tracing::info!(url = lead.url, why = %over, "the stream is over: following the archive")
            }
            (false, over) if self.retry.pause == FIRST_RETRY => {
                tracing::warn!(error = %over, "the primary cannot be followed: following the archive");
            }
            (false, over) => tracing::debug!(error = %over, "the primary cannot be followed"),
        }
        if let Over::Settle(error) = over {
            return Err(error);
        }
        // Whoever is the primary now: the lease knows.
        self.lease.look();
        match began {
            true => self.retry.worked(),
            false => self.retry.later((self.node.options.archive.random)()),
        }
        Ok(began)
    }

    /// The first time that the archive answers.
    fn join(&mut self) -> Look {
        let shared = &self.shared;
        match self.node.try_join(How::Live(READERS), &|| shared.stops()) {
            Ok(joined) => {
                self.joined = Some(joined);
                self.shared.blind.store(false, Ordering::Release);
                let _ = self.node.notices.send(Notice::AtHead);
                Look::News
            }
            Err(error) => judge(error),
        }
    }

    /// Looks at the archive. `lost`: of what waits here the primary does not have these.
    fn look(&mut self, lost: Option<&BTreeSet<DbName>>) -> Look {
        let began = self.node.options.clock.elapsed();
        let look = self.look_at_archive(lost);
        let nobody_writes = self.node.service.parts(|parts| parts.primary.is_none());
        if nobody_writes && matches!(look, Look::News | Look::Nothing) {
            self.node.store.set_current(began);
        }
        look
    }

    fn look_at_archive(&mut self, lost: Option<&BTreeSet<DbName>>) -> Look {
        let none = BTreeSet::new();
        let Some(joined) = &mut self.joined else { return Look::Nothing };
        let mut news = false;
        loop {
            match joined.archive.advance(&mut joined.head) {
                Ok(true) => news = true,
                Ok(false) => break,
                Err(error) if waits_serving(&error) => return Look::Again(error.to_string()),
                Err(error) => return Look::Failed(error.into()),
            }
            if self.shared.stops() {
                // Not at the head yet: nothing is to be judged by where this is.
                return Look::Nothing;
            }
        }
        let behind = joined.head.databases().iter().any(|(name, standing)| {
            self.node.store.known(name).is_none_or(|database| database.pos().txid < standing.pos.txid)
        });
        let before = Instant::now();
        let newer = joined.head.epoch() > self.node.store.epoch();
        self.overruled = newer.then(|| self.overruled.unwrap_or(before));
        let overdue = self.overruled.is_some_and(|since| since.elapsed() >= VERDICT);
        if !news && !behind && !overdue && lost.is_none() {
            return Look::Nothing;
        }
        let watch = |_: Progress| !self.shared.stops();
        let aim = match lost {
            Some(lost) => Aim::Heed(lost),
            None if overdue => Aim::Follow,
            None => Aim::Heed(&none),
        };
        let epoch = joined.head.epoch();
        match align(&self.node.store, &joined.archive, &joined.head, (How::Live(READERS), aim), &watch) {
            Ok(aligned) => {
                tracing::debug!(
                    moved = aligned.moved.len(),
                    ms = before.elapsed().as_millis() as u64,
                    "followed"
                );
                self.tell(&aligned.moved);
                // Nothing waits here any more that is not the new writer's.
                if aim == Aim::Follow
                    && let Err(error) = self.node.store.set_epoch(epoch)
                {
                    return Look::Failed(error.into());
                }
                Look::News
            }
            Err(error) => {
                let refreshed = match &error {
                    NodeError::Archive(error) if error.is_outdated() => {
                        joined.archive.refresh(&mut joined.head)
                    }
                    _ => Ok(()),
                };
                match refreshed {
                    Ok(()) => judge(error),
                    Err(error) => judge(error.into()),
                }
            }
        }
    }

    /// Tells listeners of the databases that moved, and keeps the change log small.
    fn tell(&self, moved: &[DbName]) {
        for name in moved {
            let Some(database) = self.node.store.known(name) else { continue };
            let (page_size, commit) = database.shape();
            let pos = database.pos();
            self.node.service.events.publish(Event::Tx {
                db: name.clone(),
                data: TxData {
                    txid: pos.txid,
                    post_apply_checksum: pos.checksum,
                    page_size: page_size.map_or(0, |size| size.get()),
                    commit,
                    timestamp: self.node.options.clock.now(),
                },
            });
        }
        self.keep_log();
    }

    fn keep_log(&self) {
        if let Err(error) = self.node.store.keep_log(self.node.options.log_retention) {
            tracing::warn!(%error, "upkeep of the change log failed: tried again later");
        }
    }
}

impl Follower for Thread {
    type Error = NodeError;

    fn settle(&mut self, unsettled: &BTreeSet<DbName>) -> Result<(), NodeError> {
        match self.look(Some(unsettled)) {
            Look::News | Look::Nothing => Ok(()),
            Look::Again(why) => {
                tracing::debug!(error = why, "what the primary does not have any more is not to be had yet");
                Ok(())
            }
            Look::Failed(error) => Err(error),
        }
    }

    fn applied(&mut self, head: &ChangeHead) {
        self.node.service.events.publish(Event::Tx {
            db: head.db.clone(),
            data: TxData {
                txid: head.post.txid,
                post_apply_checksum: head.post.checksum,
                page_size: head.page_size.get(),
                commit: head.commit,
                timestamp: head.timestamp,
            },
        });
    }

    fn archived(&mut self) {
        self.keep_log();
    }
}

fn judge(error: NodeError) -> Look {
    match error {
        NodeError::Archive(error) if waits_serving(&error) => Look::Again(error.to_string()),
        NodeError::Archive(crate::archive::ArchiveError::Cancelled) => Look::Nothing,
        // An application reads, or is about to roll back: the next look.
        NodeError::Database(error @ crate::db::DbError::Busy { .. }) => {
            tracing::debug!(%error, "waiting for applications");
            Look::News
        }
        error => Look::Failed(error),
    }
}
