//! Following on a replica: one thread that asks the archive for the next segment and
//! brings the databases to it while applications read. Frugal: one key, no listing, and
//! more and more seldom while nothing comes. Must not take the lease or write the
//! archive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::archive::Progress;
use crate::lease::Lease;
use crate::peer::{Event, TxData};
use crate::words::DbName;

use super::NodeError;
use super::align::{Aim, How, align};
use super::join::{Joined, waits};
use super::run::{Node, Notice};

/// How seldom the archive is asked at the most, and how often at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// How long an application that is in a database's way is waited for, before the other
/// databases get their turn.
pub(super) const READERS: Duration = Duration::from_secs(5);

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
}

/// The thread that follows; it ends when dropped.
pub(super) struct Following {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<Joined>>>,
}

impl Following {
    /// Follows from `joined` on; `None`: the archive could not be read yet.
    /// `lease` is looked at each time, for a node that does not want it, to know who has it.
    pub fn start(
        node: &Arc<Node>,
        joined: Option<Joined>,
        pace: Pace,
        lease: Option<Arc<dyn Lease>>,
    ) -> Result<Following, NodeError> {
        let shared = Arc::new(Shared::default());
        shared.blind.store(joined.is_none(), Ordering::Release);
        let thread = Thread { node: Arc::clone(node), shared: Arc::clone(&shared), joined, pace, lease };
        let builder = std::thread::Builder::new().name("litefs-follow".to_owned());
        let thread =
            builder.spawn(move || thread.run()).map_err(NodeError::io("starting to follow the archive"))?;
        Ok(Following { shared, thread: Some(thread) })
    }

    /// Whether the archive could not be read since the node started.
    pub fn is_blind(&self) -> bool {
        self.shared.blind.load(Ordering::Acquire)
    }

    /// There may be news.
    pub fn nudge(&self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).nudged = true;
        self.shared.changed.notify_all();
    }

    /// Ends it; the head that it stood at.
    pub fn stop(mut self) -> Option<Joined> {
        self.end()
    }

    fn end(&mut self) -> Option<Joined> {
        self.shared.stopping.store(true, Ordering::Release);
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
    lease: Option<Arc<dyn Lease>>,
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
            let idle = self.joined.is_some() && !trouble && self.pace == Pace::WhenAsked && pause > shortest;
            if !self.shared.pause(if idle { None } else { Some(pause) }) {
                return self.joined;
            }
            if let Some(lease) = &self.lease {
                lease.look();
            }
            let look = match self.joined {
                Some(_) => self.look(),
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

    fn look(&mut self) -> Look {
        let Some(joined) = &mut self.joined else { return Look::Nothing };
        let mut news = false;
        loop {
            match joined.archive.advance(&mut joined.head) {
                Ok(true) => news = true,
                Ok(false) => break,
                Err(error) if waits(&error) => return Look::Again(error.to_string()),
                Err(error) => return Look::Failed(error.into()),
            }
            if self.shared.stops() {
                break;
            }
        }
        let behind = joined.head.databases().iter().any(|(name, standing)| {
            self.node.store.known(name).is_none_or(|database| database.pos().txid < standing.pos.txid)
        });
        if !news && !behind {
            return Look::Nothing;
        }
        let watch = |_: Progress| !self.shared.stops();
        let before = std::time::Instant::now();
        match align(
            &self.node.store,
            &joined.archive,
            &joined.head,
            (How::Live(READERS), Aim::Follow),
            &watch,
        ) {
            Ok(aligned) => {
                tracing::debug!(
                    moved = aligned.moved.len(),
                    ms = before.elapsed().as_millis() as u64,
                    "followed"
                );
                self.tell(&aligned.moved);
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
        if let Err(error) = self.node.store.keep_log(self.node.options.log_retention) {
            tracing::warn!(%error, "upkeep of the change log failed: tried again later");
        }
    }
}

fn judge(error: NodeError) -> Look {
    match error {
        NodeError::Archive(error) if waits(&error) => Look::Again(error.to_string()),
        NodeError::Archive(crate::archive::ArchiveError::Cancelled) => Look::Nothing,
        // An application reads, or is about to roll back: the next look.
        NodeError::Database(error @ crate::db::DbError::Busy { .. }) => {
            tracing::debug!(%error, "waiting for applications");
            Look::News
        }
        error => Look::Failed(error),
    }
}
