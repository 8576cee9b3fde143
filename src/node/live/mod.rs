//! Following the primary itself, over a stream: change sets are applied a moment after
//! they were committed. What the primary does not have any more, someone else settles
//! with the archive. Must not decide whom to follow, or when to come back.

mod run;
mod take;
mod time;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::peer::stream::{Follow, Following, Pace, Received, ReceivedChange, StreamClient, StreamError};
use crate::peer::wire::{Beat, ChangeHead, Ending, Hello};
use crate::store::Store;
use crate::words::{Clock, DbName, Pos};

use run::{Batch, Run};
pub(super) use take::TakeError;
use take::{Taken, take};
use time::PrimaryTime;

#[cfg(test)]
mod tests;

/// The archive is not asked more often than this for what the primary does not have.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);

/// Whom to follow.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    pub url: String,
    pub token: Option<String>,
    pub hello: Hello,
    pub pace: Pace,
}

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over<E> {
    /// The primary said so.
    #[error("the primary ended the stream: {0}")]
    Ended(Ending),
    /// This node does not want it any more.
    #[error("it is not wanted any more")]
    Cancelled,
    /// It broke off, or never began.
    #[error(transparent)]
    Stream(StreamError),
    /// What came cannot be taken in.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// What came does not continue what is here: begin again.
    #[error("what came from the primary does not continue database {0}")]
    OutOfStep(DbName),
    /// Settling failed.
    #[error("bringing databases to where the archive stands")]
    Settle(E),
}

impl<E> From<StreamError> for Over<E> {
    fn from(error: StreamError) -> Over<E> {
        match error {
            StreamError::Cancelled => Over::Cancelled,
            error => Over::Stream(error),
        }
    }
}

/// What a follower needs of its node.
pub(super) trait Follower {
    /// What can go wrong with the archive so that following is of no use.
    type Error;

    /// Brings databases to where the archive stands now. What these have and the archive
    /// does not, the primary does not have either.
    fn settle(&mut self, unsettled: &BTreeSet<DbName>) -> Result<(), Self::Error>;

    /// A change set was applied.
    fn applied(&mut self, head: &ChangeHead);

    /// The archive has more than before.
    fn archived(&mut self);
}

/// Follows one primary at a time.
pub(super) struct Live {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    client: StreamClient,
    /// How long an application in a database's way is waited for at a time.
    patience: Duration,
}

impl Live {
    /// For the databases of `store`.
    pub fn new(store: Arc<Store>, clock: Arc<dyn Clock>, patience: Duration) -> std::io::Result<Live> {
        Ok(Live { store, clock, client: StreamClient::new()?, patience })
    }

    /// Follows until the stream is over, or `cancel` ends it; whether it had begun.
    pub fn follow<F: Follower>(
        &self,
        lead: &Lead,
        cancel: &CancellationToken,
        follower: &mut F,
    ) -> (bool, Over<F::Error>) {
        let follow = Follow {
            url: lead.url.clone(),
            token: lead.token.clone(),
            hello: lead.hello.clone(),
            positions: self.positions(),
            spool: self.store.dir().join("spool"),
            pace: lead.pace,
        };
        let following = match self.client.follow(&follow, cancel) {
            Ok(following) => following,
            Err(error) => return (false, error.into()),
        };
        if let Some(welcome) = following.welcome() {
            tracing::info!(primary = %welcome.hostname, epoch = %welcome.epoch, url = lead.url, "following the primary");
        }
        let mut pursuit = Pursuit {
            live: self,
            follower,
            following,
            cancel,
            time: PrimaryTime::default(),
            unsettled: BTreeMap::new(),
            agreed: false,
            tried: None,
            archived: HashMap::new(),
            next: None,
        };
        loop {
            if let Err(over) = pursuit.step() {
                return (true, over);
            }
        }
    }

    fn positions(&self) -> Vec<(DbName, Pos)> {
        let all = self.store.all();
        let positions = all.iter().map(|database| (database.name().clone(), database.pos()));
        positions.filter(|(_, pos)| *pos != Pos::ZERO).collect()
    }
}

/// One stream.
struct Pursuit<'a, F: Follower> {
    live: &'a Live,
    follower: &'a mut F,
    following: Following<'a>,
    cancel: &'a CancellationToken,
    time: PrimaryTime,
    /// Databases to be settled, and where they stood when the primary was told last.
    unsettled: BTreeMap<DbName, Pos>,
    tried: Option<Instant>,
    /// What is here, and the archive may lack, is the primary's.
    agreed: bool,
    /// Where databases stand in the archive, as far as the primary has said.
    archived: HashMap<DbName, Pos>,
    /// It came already.
    next: Option<Received>,
}

impl<F: Follower> Pursuit<'_, F> {
    fn step(&mut self) -> Result<(), Over<F::Error>> {
        let received = match self.next.take() {
            Some(received) => received,
            None => self.following.receive()?,
        };
        match received {
            Received::Change(change) => self.changes(change),
            Received::Beat(beat) => {
                self.beat(&beat);
                self.settle()
            }
            Received::Archived(positions) => {
                self.archived(&positions);
                self.follower.archived();
                self.settle()
            }
            Received::Settle { db, pos } => {
                let here = self.pos(&db);
                tracing::info!(%db, %here, primary = %pos, "the archive has what the primary no longer keeps");
                self.unsettled.insert(db, here);
                self.settle()
            }
            Received::End(ending) => Err(Over::Ended(ending)),
        }
    }

    fn pos(&self, db: &DbName) -> Pos {
        self.live.store.known(db).map_or(Pos::ZERO, |database| database.pos())
    }

    /// Takes in a change set, with those that came meanwhile and may go with it.
    fn changes(&mut self, first: ReceivedChange) -> Result<(), Over<F::Error>> {
        let mut batch = Batch::default();
        let mut came = Ok(Some(Received::Change(first)));
        let broken = loop {
            match came {
                Ok(Some(Received::Change(change))) => {
                    let archived = self.archived.get(&change.head.db).copied();
                    self.next = batch.push(change, archived).map(Received::Change);
                }
                Ok(Some(other)) => self.next = Some(other),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            if self.next.is_some() || !batch.is_open() {
                break None;
            }
            came = self.following.receive_at_once();
        };
        batch.runs.iter().try_for_each(|run| self.take(run))?;
        broken.map_or(Ok(()), |error| Err(error.into()))
    }

    fn take(&mut self, run: &Run) -> Result<(), Over<F::Error>> {
        let Some(last) = run.changes.last().map(|change| change.head.clone()) else { return Ok(()) };
        loop {
            match take(&self.live.store, &run.changes, run.archived, self.live.patience) {
                Ok(Taken::Applied) => {
                    run.changes.iter().for_each(|change| self.follower.applied(&change.head));
                    break;
                }
                Ok(Taken::Before) => break,
                Ok(Taken::NotNext) => return Err(Over::OutOfStep(last.db)),
                Err(error) if error.is_busy() && !self.cancel.is_cancelled() => {
                    tracing::debug!(%error, "waiting for applications");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.following.at(vec![(last.db, last.post)])?)
    }

    /// What holds at a moment holds here, unless something is to be settled.
    fn beat(&mut self, beat: &Beat) {
        let here = self.time.here(beat, self.live.clock.elapsed());
        if !self.unsettled.is_empty() {
            return;
        }
        self.live.store.set_current(here);
        // A primary says what it does not have of this node's before it says the time.
        if !self.agreed
            && let Some(welcome) = self.following.welcome()
        {
            match self.live.store.set_epoch(welcome.epoch) {
                Ok(()) => self.agreed = true,
                Err(error) => tracing::warn!(%error, "the primary's epoch could not be kept: tried again"),
            }
        }
    }

    /// What the archive has, nobody needs to publish any more.
    fn archived(&mut self, positions: &[(DbName, Pos)]) {
        self.archived.extend(positions.iter().cloned());
        let archived: BTreeMap<&DbName, Pos> = positions.iter().map(|(db, pos)| (db, *pos)).collect();
        self.live.store.commits().retain(|commit| {
            archived.get(&commit.meta.db).is_none_or(|archived| commit.meta.post.txid > archived.txid)
        });
    }

    /// Asks the archive for what the primary does not have, not too often.
    fn settle(&mut self) -> Result<(), Over<F::Error>> {
        let soon = self.tried.is_some_and(|tried| tried.elapsed() < SETTLE_PAUSE);
        if self.unsettled.is_empty() || soon {
            return Ok(());
        }
        let names = self.unsettled.keys().cloned().collect();
        self.follower.settle(&names).map_err(Over::Settle)?;
        self.tried = Some(Instant::now());
        let moved: Vec<(DbName, Pos)> = self
            .unsettled
            .iter()
            .map(|(db, before)| (db.clone(), *before, self.pos(db)))
            .filter(|(_, before, now)| before != now)
            .map(|(db, _, now)| (db, now))
            .collect();
        for (db, _) in &moved {
            self.unsettled.remove(db);
        }
        if moved.is_empty() { Ok(()) } else { Ok(self.following.at(moved)?) }
    }
}
