//! What runs on the primary and nowhere else: the archive's writer, the publisher, the
//! upkeep. Must not decide when a reign begins or ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::archive::{Occasion, PutError, Writer};
use crate::db::DbError;
use crate::peer::wire::Welcome;
use crate::store::LogRetention;
use crate::words::Epoch;

use super::backlog::Backlog;
use super::feed::{Feeds, Setup as FeedSetup};
use super::halt::Keeper;
use super::images::Images;
use super::join::Joined;
use super::publish::{Publisher, Setup};
use super::run::{Node, Notice};
use super::upkeep::Upkeep;
use super::{Durability, NodeError};

/// The parts of a primary.
pub(super) struct Reign {
    writer: Arc<Writer>,
    pub publisher: Arc<Publisher>,
    upkeep: Upkeep,
    backlog: Backlog,
    since: Instant,
    /// What replicas are told.
    pub feeds: Feeds,
    /// Which of them may write.
    pub halts: Arc<Keeper>,
}

impl Reign {
    /// Its epoch.
    pub fn epoch(&self) -> Epoch {
        self.writer.epoch()
    }

    /// The head that it has written.
    pub fn joined(&self) -> Joined {
        Joined::at(self.writer.archive().clone(), self.writer.head())
    }

    /// When it began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// It counts as begun now.
    pub fn begin_again(&mut self) {
        self.since = Instant::now();
    }
}

impl Node {
    /// Begins to publish.
    pub(super) fn begin_reign(&self, writer: Writer) -> Result<Reign, NodeError> {
        let writer = Arc::new(writer);
        let publisher = Arc::new(self.start_publisher(&writer)?);
        let upkeep = self.start_upkeep(&writer)?;
        let backlog = Backlog::start(&self.store).map_err(NodeError::io("watching the backlog"))?;
        let feeds = self.feeds(&writer);
        let halts = Arc::new(self.start_keeper()?);
        self.service.update(|parts| {
            parts.feeds = Some(feeds.clone());
            parts.halts = Some(Arc::clone(&halts));
            parts.writer = Some(Arc::clone(&writer));
            parts.publisher = Some(Arc::clone(&publisher));
        });
        Ok(Reign { writer, publisher, upkeep, backlog, since: Instant::now(), feeds, halts })
    }

    /// Ends to publish; what was not published waits in the store's queue.
    pub(super) fn end_reign(&self, reign: Reign) {
        self.service.update(|parts| {
            parts.feeds = None;
            parts.halts = None;
            parts.writer = None;
            parts.publisher = None;
        });
        let Reign { writer, publisher, upkeep, backlog, halts, .. } = reign;
        halts.close();
        drop(halts);
        drop(backlog);
        drop(publisher);
        drop(upkeep);
        drop(writer);
        self.store.commits().give_back();
    }

    fn start_keeper(&self) -> Result<Keeper, NodeError> {
        let notices = self.notices.clone();
        let failed = move |error: DbError| drop(notices.send(Notice::Failed(error.into())));
        Keeper::start(Arc::clone(&self.store), Arc::clone(&self.options.clock), failed)
            .map_err(NodeError::io("starting to give halt locks"))
    }

    /// What replicas are told: for this reign, since its epoch is in it.
    fn feeds(&self, writer: &Arc<Writer>) -> Feeds {
        let welcome = Welcome {
            cluster: writer.archive().cluster(),
            node: self.store.node_id(),
            hostname: self.options.hostname.clone(),
            epoch: writer.epoch(),
        };
        let writer = Arc::clone(writer);
        let archived = move || {
            writer.with_head(|head| {
                let databases = head.databases().iter();
                databases.map(|(name, standing)| (name.clone(), standing.pos)).collect()
            })
        };
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.options.clock));
        Feeds::new(FeedSetup { store, clock, welcome, archived: Box::new(archived) })
    }

    fn start_publisher(&self, writer: &Arc<Writer>) -> Result<Publisher, NodeError> {
        let (poke, notices) = (self.poke.clone(), self.notices.clone());
        // What waits for a put is put as soon as the one before is done.
        let urgent = self.options.durability == Durability::Archive;
        Publisher::start(Setup {
            store: Arc::clone(&self.store),
            writer: Arc::clone(writer),
            interval: if urgent { Duration::ZERO } else { self.options.sync_interval },
            urgent,
            codec: self.options.archive.codec,
            node: self.store.node_id(),
            after_put: Box::new(move || poke.poke()),
            on_end: Box::new(move |error| drop(notices.send(Notice::Failed(error.into())))),
        })
        .map_err(NodeError::io("starting the publisher"))
    }

    fn start_upkeep(&self, writer: &Arc<Writer>) -> Result<Upkeep, NodeError> {
        let (store, writer) = (Arc::clone(&self.store), Arc::clone(writer));
        let (retention, notices): (LogRetention, _) = (self.options.log_retention, self.notices.clone());
        Upkeep::start(self.poke.clone(), move || {
            if let Err(error) = store.keep_log(retention) {
                tracing::warn!(%error, "upkeep of the change log failed: tried again after the next commit");
            }
            match writer.upkeep(Occasion::Running, &Images(&store)) {
                Ok(_) => {}
                Err(error @ PutError::Fenced { .. }) => drop(notices.send(Notice::Failed(error.into()))),
                Err(error) => {
                    tracing::warn!(%error, "upkeep of the archive failed: tried again after the next commit")
                }
            }
        })
        .map_err(NodeError::io("starting the upkeep"))
    }

    /// Compacts the session's tail, so that the next cold start reads almost nothing.
    pub(super) fn compact(&self, reign: &Reign, patience: Duration) {
        if patience < Duration::from_secs(1) {
            return;
        }
        if let Err(error) = reign.writer.upkeep(Occasion::Stopping, &Images(&self.store)) {
            tracing::warn!(%error, "the archive's tail was not compacted: the next start reads more, nothing is lost");
        }
    }
}
