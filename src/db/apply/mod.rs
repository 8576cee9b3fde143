//! Applying change sets to a database while applications read it through the mount. In
//! WAL mode as one more writer of the WAL: no reader waits, and none sees half of it.
//! In the rollback modes, and where the journal mode or the page size changes, with the
//! database alone for as long as it takes to write the pages. Must not know where the
//! pages come from.
//!
//! A mark file says that change sets are applied here. While it is there, recovery
//! takes the log for what was committed, whatever the WAL holds beyond, and writes the
//! log's pages into the database file again (`recover`).
//!
//! Locks, in this order: `hold`, then those of `Database`. No lock that a request's
//! handler takes is held while the mount is used.

mod brake;
mod checkpoint;
mod exclusive;
mod forward;
mod frames;
mod hold;
pub(super) mod locks;
mod spool;
mod writer;

pub use brake::Brake;
pub(super) use hold::Hold;
pub use hold::Paused;

use std::fs::{self, File};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::change::{Builder, Change, Facts};
use super::database::{State, old_sum};
use super::log::WalEnd;
use super::{Committed, Database, DbError, Goal, Place};
use crate::sqlite::header::JournalMode;
use crate::words::{Checksum, PageSum, Pgno, Pos, Timestamp};
use spool::Spool;

/// The pages that changed from the database's position to a later one, while
/// applications may read: all of them become visible at once.
pub struct LiveApply<'a> {
    database: &'a Database,
    from: Pos,
    goal: Goal,
    timestamp: Timestamp,
    archived: bool,
    spool: Mutex<Spool>,
}

impl Database {
    /// Begins to take in the pages that changed since `from`, the database's position.
    /// `timestamp` is the last transaction's. Nothing changes before
    /// [`LiveApply::finish`].
    pub fn apply_live(&self, from: Pos, goal: Goal, timestamp: Timestamp) -> Result<LiveApply<'_>, DbError> {
        fs::create_dir_all(self.paths.dir()).map_err(DbError::io("create", self.paths.dir()))?;
        let spool = Mutex::new(Spool::new(self.paths.dir()));
        Ok(LiveApply { database: self, from, goal, timestamp, archived: true, spool })
    }
}

/// Applications do not get a database while this is there.
pub struct Hidden<'a>(&'a Database);

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        self.0.hidden.store(false, Ordering::Release);
        if let Some(own) = self.0.shared.own()
            && let Err(error) = own.settle()
        {
            tracing::debug!(db = %self.0.name, %error, "the kernel was not told of a new database");
        }
        self.0.show(self.0.pos());
    }
}

impl Database {
    /// Applications find no such file yet: one that arrives here is held before anyone
    /// can write to it.
    pub fn hide(&self) -> Hidden<'_> {
        self.hidden.store(true, Ordering::Release);
        Hidden(self)
    }

    /// Whether applications do not get it yet.
    pub(crate) fn is_hidden(&self) -> bool {
        self.hidden.load(Ordering::Acquire)
    }

    /// Says that the database file is a new one: the kernel forgets what it knew.
    pub fn appears(&self) {
        if let Some(own) = self.shared.own() {
            own.changed(&self.name, 0, 0);
        }
    }
}

impl LiveApply<'_> {
    /// The archive does not have it yet: whoever listens for commits is told, since it
    /// is this node's to publish should it become the primary.
    #[must_use]
    pub fn not_archived(mut self) -> Self {
        self.archived = false;
        self
    }

    /// Takes in a page, in any order, from any thread; of one that comes again the last
    /// content counts.
    pub fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner).put(pgno, data, sum)
    }

    /// The database becomes what the pages make of it.
    ///
    /// # Errors
    /// `Busy`: readers or writers were in the way for longer than `patience`. Nothing
    /// has changed; it can be tried again. `Damaged`: the pages do not make a database
    /// of the goal's checksum.
    pub fn finish(self, patience: Duration) -> Result<(), DbError> {
        let (database, goal) = (self.database, self.goal);
        self.write(patience)?;
        database.show(goal.pos);
        Ok(())
    }

    fn write(self, patience: Duration) -> Result<(), DbError> {
        let deadline = Instant::now() + patience;
        let spool = self.spool.into_inner().unwrap_or_else(PoisonError::into_inner);
        let database = self.database;
        let mut hold = database.hold();
        // What comes from elsewhere ends what this node's applications were allowed.
        database.lose_halt();
        let LiveApply { from, goal, timestamp, archived, .. } = self;
        let set = Set { from, goal, timestamp, archived, spool };
        if self.goal.pages == 0 {
            return database.live_drop(&set, &mut hold);
        }
        let mut first = vec![0; self.goal.page_size.len()];
        let stated = set.spool.read(Pgno::FIRST, &mut first).map_err(io_in(database))?;
        let next = if stated { hold::mode_of(&first).map(|(mode, _)| mode) } else { None };
        let own = database.shared.own();
        let now = database.file_header()?;
        let same_size = now.as_ref().is_some_and(|header| header.page_size == self.goal.page_size);
        let now = now.map(|header| header.journal_mode());
        if now == Some(JournalMode::Wal)
            && hold.is_none()
            && let Some(own) = &own
        {
            *hold = database.take_hold(&**own, deadline)?;
        }
        match hold.as_mut() {
            Some(hold) if same_size && next.is_none_or(|mode| mode == JournalMode::Wal) => {
                database.apply_frames(&set, hold)
            }
            _ => database.apply_alone(&set, &mut hold, own.as_deref(), deadline),
        }
    }
}

/// What is applied.
struct Set {
    from: Pos,
    goal: Goal,
    timestamp: Timestamp,
    archived: bool,
    spool: Spool,
}

fn io_in(database: &Database) -> impl FnOnce(io::Error) -> DbError {
    DbError::io("apply to", database.path(super::FileKind::Database))
}

impl Database {
    /// The change set as a record of the log; what is already so is left out.
    fn build_applied(
        &self,
        state: &State,
        set: &Set,
        wal: Option<WalEnd>,
    ) -> Result<(Change, bool), DbError> {
        if state.pos.txid > set.from.txid {
            return Err(self.busy("it has moved meanwhile"));
        }
        if state.pos != set.from {
            return Err(self.damaged(format!(
                "change sets from {} to {} do not continue its position {}",
                set.from, set.goal.pos, state.pos
            )));
        }
        let size = set.goal.page_size;
        let afresh = state.pages == 0 || state.page_size != Some(size);
        let before = if afresh { Checksum::EMPTY } else { state.pos.checksum };
        let mut builder = Builder::new(&self.shared, before, size);
        let mut page = vec![0; size.len()];
        for pgno in set.spool.pages(set.goal.pages) {
            set.spool.read(pgno, &mut page).map_err(io_in(self))?;
            let old = if afresh { None } else { old_sum(&state.sums, pgno, || self.paths.sums())? };
            builder.page(pgno, old, &page)?;
        }
        let pages_before = if afresh { 0 } else { state.pages };
        for pgno in (set.goal.pages.saturating_add(1)..=pages_before).filter_map(Pgno::new) {
            builder.remove(old_sum(&state.sums, pgno, || self.paths.sums())?);
        }
        let facts = Facts {
            db: self.name.clone(),
            pre: state.pos,
            commit: set.goal.pages,
            timestamp: set.timestamp,
            wal,
            journal: 0,
        };
        let change = builder.build(facts, pages_before, set.goal.pos)?;
        if set.goal.pages > 0 && change.1 != set.goal.pos.checksum {
            return Err(self.damaged(format!(
                "change sets from {} to {} would give it checksum {}; move the data directory aside and start again: \
                 the node then restores from the archive",
                set.from, set.goal.pos, change.1
            )));
        }
        Ok((change.0, afresh))
    }

    /// Says for recovery that change sets are applied here.
    pub(super) fn put_mark(&self) -> Result<(), DbError> {
        if self.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        // What was committed before is in the log alone from here on, for recovery.
        self.shared.log.sync()?;
        self.sync_journal()?;
        let path = self.paths.applying();
        File::create(&path).map_err(DbError::io("create", &path))?;
        self.sync_names()?;
        self.marked.store(true, Ordering::Release);
        Ok(())
    }

    /// Enters a change set that is in the log and in the files.
    fn enter_applied(&self, state: &mut State, set: &Set, entered: (&Change, Place, bool)) {
        let (change, place, afresh) = entered;
        self.enter_change(state, change, place, afresh);
        state.whole = change.meta.commit == 0;
        if !set.archived {
            let (meta, pages) = (change.meta.clone(), change.pages.len() as u32);
            self.shared.listener.applied(Committed { place, meta, pages });
        }
    }

    fn pass(&self, point: &str) -> Result<(), DbError> {
        self.shared.faults.pass(point).map_err(io_in(self))
    }
}

/// Nothing needs to be applied again.
fn remove_mark(database: &Database) -> Result<(), DbError> {
    database.remove_marks(&[database.paths.applying()])?;
    database.marked.store(false, Ordering::Release);
    Ok(())
}
