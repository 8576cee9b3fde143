//! The primary's side of the halt lock: gives it to replicas, makes its own applications
//! wait while one has it, takes what that one commits, and lets the applications go on
//! when it is given back or not heard of any more. Must not wait for a replica.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::table::{Not, Table};
use crate::db::{Database, DbError, Goal};
use crate::ltx::{Decoder, LtxError};
use crate::peer::{HaltClaim, Halted, ServiceError};
use crate::store::Store;
use crate::words::{Clock, DbName, NodeId, PageSum, Pos};

/// How long a lock holds after it was heard of last.
const TTL: Duration = Duration::from_secs(10);

/// How long another replica that has it is waited for, and applications that write.
const OTHERS: Duration = Duration::from_secs(5);

/// How long applications that read may be in the way of a commit (rollback modes).
const READERS: Duration = Duration::from_secs(5);

/// How often it is asked whether the archive has a commit, should nobody tell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

type OnFailure = Box<dyn Fn(DbError) + Send + Sync>;

/// The locks of a primary, for one term of it.
pub(in crate::node) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    on_failure: OnFailure,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    table: Table,
    /// None is given, nothing is taken.
    closed: bool,
    stop: bool,
}

impl Keeper {
    /// For the databases of `store`. `on_failure` is told of a database that cannot go on.
    pub fn start(
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        on_failure: impl Fn(DbError) + Send + Sync + 'static,
    ) -> std::io::Result<Keeper> {
        let state = Mutex::new(State { table: Table::new(TTL), closed: false, stop: false });
        let on_failure = Box::new(on_failure);
        let shared = Arc::new(Shared { store, clock, on_failure, state, changed: Condvar::new() });
        let sweeper = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("litefs-halt".to_owned());
        Ok(Keeper { shared, thread: Some(thread.spawn(move || sweeper.sweep())?) })
    }

    /// Gives the lock to a replica.
    pub fn give(&self, claim: &HaltClaim) -> Result<Halted, ServiceError> {
        self.shared.give(claim)
    }

    /// The replica still needs it.
    pub fn renew(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        let now = self.shared.clock.elapsed();
        let mut state = self.shared.open()?;
        let renewed = state.table.renew(&claim.db, claim.id, claim.node, now);
        renewed.map_err(|not| refusal(&claim.db, not))
    }

    /// The replica does not need it any more.
    pub fn end(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        self.shared.end(claim)
    }

    /// A transaction of the replica that has the lock. It is the chain's next when this
    /// returns.
    pub fn take(&self, claim: &HaltClaim, post: Pos, ltx: &mut dyn Read) -> Result<(), ServiceError> {
        let now = self.shared.clock.elapsed();
        let begun = self.shared.open()?.table.begin(&claim.db, claim.id, claim.node, now);
        begun.map_err(|not| refusal(&claim.db, not))?;
        let taken = self.shared.take(&claim.db, post, ltx);
        self.shared.done(&claim.db);
        taken
    }

    /// Whether some replica has a lock.
    pub fn is_used(&self) -> bool {
        !self.shared.lock().table.is_empty()
    }

    /// Takes every lock away and gives none any more; waits for a commit that is being
    /// taken. Applications go on if this node may still write.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Gives locks again.
    pub fn reopen(&self) {
        self.shared.lock().closed = false;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, span: Option<Duration>) -> MutexGuard<'a, State> {
        match span {
            Some(span) => self.changed.wait_timeout(state, span).unwrap_or_else(PoisonError::into_inner).0,
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The state, if locks are given.
    fn open(&self) -> Result<MutexGuard<'_, State>, ServiceError> {
        let state = self.lock();
        if state.closed {
            return Err(ServiceError::NotReady("this node is about to give the lease away".to_owned()));
        }
        Ok(state)
    }

    fn database(&self, db: &DbName) -> Result<Arc<Database>, ServiceError> {
        self.store.database(db).ok_or_else(|| ServiceError::NoDatabase(db.clone()))
    }

    fn done(&self, db: &DbName) {
        self.lock().table.done(db, self.clock.elapsed());
        self.changed.notify_all();
    }

    fn forget(&self, db: &DbName) {
        self.lock().table.forget(db);
        self.changed.notify_all();
    }

    fn give(&self, claim: &HaltClaim) -> Result<Halted, ServiceError> {
        let (database, deadline) = (self.database(&claim.db)?, Instant::now() + OTHERS);
        let mut state = self.open()?;
        while let Err(not) = state.table.give(&claim.db, claim.id, claim.node, self.clock.elapsed()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return Err(refusal(&claim.db, not));
            }
            state = self.wait(state, Some(left));
        }
        drop(state);
        match database.reserve_for_other(OTHERS) {
            Ok(pos) => {
                tracing::info!(db = %claim.db, node = %claim.node, %pos, "a replica has the halt lock: applications wait here");
                self.done(&claim.db);
                Ok(Halted { id: claim.id, pos, ttl_ms: u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX) })
            }
            Err(error) => {
                self.forget(&claim.db);
                Err(ServiceError::NotReady(error.to_string()))
            }
        }
    }

    fn end(&self, claim: &HaltClaim) -> Result<(), ServiceError> {
        let mut state = self.lock();
        loop {
            let now = self.clock.elapsed();
            match state.table.release(&claim.db, claim.id, claim.node, now) {
                Ok(()) => break,
                // Its last commit is being taken.
                Err(Not::Idle) => state = self.wait(state, Some(LOOK_AGAIN)),
                Err(not) => return Err(refusal(&claim.db, not)),
            }
        }
        drop(state);
        self.let_go(&claim.db);
        self.forget(&claim.db);
        tracing::info!(db = %claim.db, node = %claim.node, "a replica gave the halt lock back");
        Ok(())
    }

    /// Lets applications go on, if this node may write.
    fn let_go(&self, db: &DbName) {
        let Some(database) = self.store.known(db) else { return };
        let gone = match self.store.is_writable() {
            true => database.release_writers(),
            false => database.forget_reserve(),
        };
        if let Err(error) = gone {
            tracing::error!(%db, %error, "applications could not be let go on; start the node again");
        }
    }

    /// Ends locks of which nothing was heard for too long.
    fn sweep(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = self.clock.elapsed();
            let expired = state.table.expire(now);
            if expired.is_empty() {
                let next = state.table.next_expiry().map(|next| next.saturating_sub(now));
                state = self.wait(state, next);
                continue;
            }
            drop(state);
            for (db, node) in expired {
                tracing::warn!(%db, %node, "the replica that has the halt lock is not heard of: it is lost");
                self.let_go(&db);
                self.forget(&db);
            }
            state = self.lock();
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.store.news().tell();
        while state.table.is_busy() {
            state = self.wait(state, Some(LOOK_AGAIN));
        }
        let ended = state.table.clear();
        for db in &ended {
            self.let_go(db);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn take(&self, db: &DbName, post: Pos, ltx: &mut dyn Read) -> Result<(), ServiceError> {
        let database = self.database(db)?;
        if self.store.commits().backlog().full {
            return Err(ServiceError::NotReady(
                "the backlog of what the archive does not have is full (storage.backlog)".to_owned(),
            ));
        }
        let applied = self.apply(&database, post, ltx);
        if let Err(Trouble::Database(error)) = &applied
            && database.is_between_positions()
        {
            let why =
                DbError::Damaged { db: db.clone(), what: format!("applying a commit broke off: {error}") };
            (self.on_failure)(why);
        }
        applied.map_err(|trouble| trouble.answer(db))?;
        let failed = |error: crate::db::LogError| ServiceError::Failed(error.to_string());
        self.store.log().sync().map_err(failed)?;
        self.wait_archived(db, post)
    }

    fn apply(&self, database: &Database, post: Pos, ltx: &mut dyn Read) -> Result<(), Trouble> {
        let mut decoder = Decoder::new(ltx)?;
        let header = decoder.header().clone();
        let pre = Pos { txid: database.pos().txid, checksum: header.pre };
        let next = (header.min, header.max) == (pre.txid.next(), post.txid) && header.min == header.max;
        if !next || database.pos() != pre || header.commit == 0 {
            return Err(Trouble::NotNext { here: database.pos() });
        }
        let goal = Goal { pos: post, page_size: header.page_size, pages: header.commit };
        let live = database.apply_live(pre, goal, self.clock.now())?.not_archived();
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page)? {
            live.page(pgno, &page, PageSum::of(pgno, &page))?;
        }
        if decoder.finish()?.post != Some(post.checksum) {
            return Err(Trouble::Elsewhere);
        }
        Ok(live.finish(READERS)?)
    }

    /// Where a commit counts only once the archive has it, so does this.
    fn wait_archived(&self, db: &DbName, post: Pos) -> Result<(), ServiceError> {
        let not = |why: &str| ServiceError::NotReady(format!("the archive does not have it yet, and {why}"));
        loop {
            let seen = self.store.news().count();
            if !self.store.is_writable() {
                return Err(not("this node is not the primary any more"));
            }
            let oldest = self.store.commits().oldest_of(db);
            let archived = oldest.is_none_or(|commit| commit.meta.post.txid > post.txid);
            if archived || !self.store.archive_first() {
                return Ok(());
            }
            if self.lock().closed {
                return Err(not("this node gives the lease away"));
            }
            self.store.news().wait(seen, LOOK_AGAIN);
        }
    }
}

/// Why a commit is not taken.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("it does not continue what is here, {here}")]
    NotNext { here: Pos },
    #[error("it leads elsewhere than it says")]
    Elsewhere,
    #[error(transparent)]
    Ltx(#[from] LtxError),
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("keeping its pages: {0}")]
    Io(#[from] std::io::Error),
}

impl Trouble {
    fn answer(self, db: &DbName) -> ServiceError {
        let text = format!("a commit to database {db} under the halt lock is not taken: {self}");
        match self {
            Trouble::NotNext { .. } | Trouble::Elsewhere | Trouble::Ltx(_) => ServiceError::BadInput(text),
            Trouble::Database(DbError::Busy { .. }) => ServiceError::NotReady(text),
            Trouble::Database(_) | Trouble::Io(_) => ServiceError::Failed(text),
        }
    }
}

fn refusal(db: &DbName, not: Not) -> ServiceError {
    let of = |node: NodeId| format!("the halt lock of database {db} is held by node {node}");
    match not {
        Not::Held => ServiceError::NotSupported(format!(
            "the halt lock of database {db} is not held any more: it was given back, or not renewed in time"
        )),
        Not::Yours(node) => ServiceError::NotSupported(of(node)),
        Not::Idle => ServiceError::NotReady(format!("a commit to database {db} is being taken already")),
    }
}
