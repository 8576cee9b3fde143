//! The replicas that listen, and the feed of each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::ScannedChange;
use crate::ltx::Codec;
use crate::node::encode::write_stored;
use crate::peer::stream::{Feed, Item, OutgoingChange};
use crate::peer::wire::{Beat, ChangeHead, Ending, Hello, Welcome};
use crate::store::Store;
use crate::words::{Clock, DbName, NodeId, Pos};

use super::places::Places;
use super::reading::{Reading, Step};

/// What the feeds need.
pub(in crate::node) struct Setup {
    pub store: Arc<Store>,
    pub clock: Arc<dyn Clock>,
    pub welcome: Welcome,
    /// Where the databases stand in the archive.
    pub archived: Box<dyn Fn() -> Vec<(DbName, Pos)> + Send + Sync>,
}

struct Shared {
    setup: Setup,
    places: Places,
    replicas: Mutex<BTreeMap<NodeId, Arc<Replica>>>,
}

/// The feeds of a primary, for one term of it.
#[derive(Clone)]
pub(in crate::node) struct Feeds(Arc<Shared>);

/// One replica and what it is told.
pub(in crate::node) struct Replica {
    shared: Arc<Shared>,
    hello: Hello,
    reading: Mutex<Reading>,
    heard: Mutex<Heard>,
    closed: AtomicBool,
    archived: Mutex<Archived>,
}

/// What it was told of the archive.
struct Archived {
    /// After so many publications, and one.
    after: u64,
    at: HashMap<DbName, Pos>,
    /// It is told before anything else, if there are news.
    due: bool,
}

/// What the replica says.
#[derive(Default)]
struct Heard {
    /// How many wait for what it says.
    waiting: usize,
    at: HashMap<DbName, Pos>,
    /// Databases that it was told to settle.
    settling: HashSet<DbName>,
    settled: Vec<(DbName, Pos)>,
    ending: Option<Ending>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feeds {
    pub fn new(setup: Setup) -> Feeds {
        Feeds(Arc::new(Shared { setup, places: Places::default(), replicas: Mutex::default() }))
    }

    /// A replica begins to listen.
    pub fn open(&self, hello: Hello, positions: Vec<(DbName, Pos)>) -> Result<Arc<Replica>, String> {
        let setup = &self.0.setup;
        let at: HashMap<DbName, Pos> = positions.into_iter().collect();
        let reading = Reading::begin(&setup.store, &self.0.places, &*setup.clock, at.clone());
        let replica = Arc::new(Replica {
            shared: Arc::clone(&self.0),
            reading: Mutex::new(reading.map_err(|error| error.to_string())?),
            heard: Mutex::new(Heard { at, ..Heard::default() }),
            closed: AtomicBool::new(false),
            archived: Mutex::new(Archived { after: 0, at: HashMap::new(), due: true }),
            hello,
        });
        tracing::info!(replica = %replica.hello.hostname, node = %replica.hello.node, "a replica follows");
        let before = locked(&self.0.replicas).insert(replica.hello.node, Arc::clone(&replica));
        if let Some(before) = before {
            before.end(Ending::Replaced);
        }
        Ok(replica)
    }

    /// Ends every stream, each once its replica was told everything that is committed.
    pub fn end(&self, ending: Ending) {
        self.replicas().iter().for_each(|replica| replica.end(ending));
    }

    /// The replicas that listen.
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        locked(&self.0.replicas).values().cloned().collect()
    }

    /// The replica of this id, if it listens.
    pub fn replica(&self, node: NodeId) -> Option<Arc<Replica>> {
        locked(&self.0.replicas).get(&node).cloned()
    }
}

impl Replica {
    /// Its id.
    pub fn node(&self) -> NodeId {
        self.hello.node
    }

    /// Its name.
    pub fn hostname(&self) -> &str {
        &self.hello.hostname
    }

    /// How many transactions it has not said that it has.
    pub fn behind(&self) -> u64 {
        let heard = locked(&self.heard);
        let all = self.shared.setup.store.all();
        let lacks = all.iter().map(|database| {
            let at = heard.at.get(database.name()).map_or(0, |pos| pos.txid.get());
            database.pos().txid.get().saturating_sub(at)
        });
        lacks.sum()
    }

    /// Ends its stream once it was told everything that is committed now.
    pub fn end(&self, ending: Ending) {
        locked(&self.heard).ending = Some(ending);
        self.shared.setup.store.news().tell();
    }

    /// Waits until it says that it has everything that is committed now; false if that
    /// takes longer than `patience`, or it listens no more.
    pub fn wait_caught_up(&self, patience: Duration) -> bool {
        let store = &self.shared.setup.store;
        let targets: Vec<(DbName, Pos)> =
            store.all().iter().map(|database| (database.name().clone(), database.pos())).collect();
        let deadline = Instant::now() + patience;
        locked(&self.heard).waiting += 1;
        let caught_up = self.wait_until(&targets, deadline);
        locked(&self.heard).waiting -= 1;
        caught_up
    }

    fn wait_until(&self, targets: &[(DbName, Pos)], deadline: Instant) -> bool {
        let store = &self.shared.setup.store;
        loop {
            let seen = store.news().count();
            let heard = locked(&self.heard);
            if targets.iter().all(|(db, pos)| heard.at.get(db).copied().unwrap_or(Pos::ZERO) == *pos) {
                return true;
            }
            drop(heard);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.closed.load(Ordering::Acquire) {
                return false;
            }
            store.news().wait(seen, left);
        }
    }

    /// Where the archive is further than the replica was told, if anything was put.
    fn news_of_archive(&self) -> Option<Vec<(DbName, Pos)>> {
        let publications = self.shared.setup.store.commits().publications() + 1;
        let mut known = locked(&self.archived);
        known.due = false;
        if known.after == publications {
            return None;
        }
        known.after = publications;
        let mut news = (self.shared.setup.archived)();
        news.retain(|(db, pos)| known.at.get(db) != Some(pos));
        known.at.extend(news.iter().cloned());
        (!news.is_empty()).then_some(news)
    }

    fn change(&self, change: ScannedChange) -> OutgoingChange {
        let meta = &change.meta;
        let head = ChangeHead {
            db: meta.db.clone(),
            pre: meta.pre,
            post: meta.post,
            page_size: meta.page_size,
            commit: meta.commit,
            pages: change.pages.len() as u32,
            timestamp: meta.timestamp,
        };
        let (shared, place) = (Arc::clone(&self.shared), change.place);
        let write = Box::new(move |to: &mut dyn io::Write| {
            let (store, node) = (&shared.setup.store, shared.setup.welcome.node);
            let stored = store.log().read(place).map_err(io::Error::other)?;
            write_stored(&stored, Codec::Lz4, node, to).map(drop).map_err(io::Error::other)
        });
        OutgoingChange { head, write }
    }

    fn beat(&self, at: Duration) -> Item {
        Item::Beat(Beat { at, wall: self.shared.setup.clock.now() })
    }

    /// What is to be said now, if anything is.
    fn look(&self, reading: &mut Reading) -> Result<Option<Item>, String> {
        let Setup { store, clock, .. } = &self.shared.setup;
        let (places, failed) = (&self.shared.places, |error: crate::db::LogError| error.to_string());
        if self.closed.load(Ordering::Acquire) {
            return Err("nobody listens any more".to_owned());
        }
        let (settled, ending) = {
            let mut heard = locked(&self.heard);
            (std::mem::take(&mut heard.settled), heard.ending)
        };
        if !settled.is_empty() {
            reading.settled(store, places, &**clock, settled).map_err(failed)?;
        }
        // What the archive has, a replica that is behind takes in together.
        let due = locked(&self.archived).due;
        if let Some(news) = due.then(|| self.news_of_archive()).flatten() {
            return Ok(Some(Item::Archived(news)));
        }
        match reading.next(store, places, &**clock).map_err(failed)? {
            Step::Change(change) => return Ok(Some(Item::Change(self.change(change)))),
            Step::Settle(db, pos) => {
                locked(&self.heard).settling.insert(db.clone());
                return Ok(Some(Item::Settle { db, pos }));
            }
            Step::Time(at) => {
                locked(&self.archived).due = true;
                return Ok(Some(self.beat(at)));
            }
            Step::Busy => return Ok(Some(Item::Busy)),
            Step::Quiet => {}
        }
        if let Some(ending) = ending {
            return Ok(Some(Item::End(ending)));
        }
        Ok(self.news_of_archive().map(Item::Archived))
    }
}

impl Feed for Replica {
    fn welcome(&self) -> Welcome {
        self.shared.setup.welcome.clone()
    }

    fn next(&self, patience: Duration) -> Result<Item, String> {
        let (store, clock) = (&self.shared.setup.store, &self.shared.setup.clock);
        let deadline = Instant::now() + patience;
        let mut reading = locked(&self.reading);
        loop {
            let seen = store.news().count();
            let now = clock.elapsed();
            if let Some(item) = self.look(&mut reading)? {
                return Ok(item);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Nothing was to be said after this moment was taken.
                reading.said(now);
                return Ok(self.beat(now));
            }
            store.news().wait(seen, left);
        }
    }

    fn at(&self, positions: Vec<(DbName, Pos)>) {
        let mut heard = locked(&self.heard);
        for (db, pos) in positions {
            if heard.settling.remove(&db) {
                heard.settled.push((db.clone(), pos));
            }
            heard.at.insert(db, pos);
        }
        let listened_for = heard.waiting > 0 || !heard.settled.is_empty();
        drop(heard);
        if listened_for {
            self.shared.setup.store.news().tell();
        }
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut replicas = locked(&self.shared.replicas);
        if replicas.get(&self.hello.node).is_some_and(|known| std::ptr::eq(&**known, self)) {
            replicas.remove(&self.hello.node);
        }
        drop(replicas);
        tracing::info!(replica = %self.hello.hostname, node = %self.hello.node, "a replica is gone");
        self.shared.setup.store.news().tell();
    }
}
