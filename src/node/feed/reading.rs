//! One replica's way through the log: which change sets continue what it has, and which
//! databases it has to settle with the archive. Must not wait.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::db::{LogError, LogReader, Place, ScannedChange};
use crate::store::Store;
use crate::words::{Clock, DbName, Pos};

use super::places::Places;

/// A replica that is told without a pause hears the time so often all the same.
const BUSY_BEAT: Duration = Duration::from_millis(250);

/// After so many change sets that are not for it, it hears that the primary lives: to look
/// at that many takes far less than a stream's deadline.
const MANY: u32 = 1000;

/// What is next.
#[derive(Debug)]
pub(super) enum Step {
    /// This change set.
    Change(ScannedChange),
    /// What lies between the replica's position and this is not in the log.
    Settle(DbName, Pos),
    /// Everything before this moment is said, though more follows.
    Time(Duration),
    /// None of the last many change sets is for this replica; more follow.
    Busy,
    /// Nothing, for now.
    Quiet,
}

/// Where a replica is in the log.
pub(super) struct Reading {
    reader: LogReader,
    /// Up to here the log is read now…
    end: Place,
    /// … which is everything that was committed before this moment.
    asof: Duration,
    /// When the time was said last.
    said: Duration,
    /// Change sets that were passed over since the replica heard anything.
    passed: u32,
    /// Where the databases stand on the replica once it has what it was told.
    at: HashMap<DbName, Pos>,
    /// Those that it has to settle first.
    settling: HashSet<DbName>,
    /// While the part of the log is read that was there at the beginning.
    first: Option<First>,
    due: VecDeque<(DbName, Pos)>,
}

/// The databases as the primary had them at the beginning.
struct First {
    /// Where they stood, and from where on the log is of their past.
    targets: BTreeMap<DbName, (Pos, Place)>,
    moved: HashSet<DbName>,
}

impl Reading {
    /// For a replica whose databases stand there.
    pub fn begin(
        store: &Store,
        places: &Places,
        clock: &dyn Clock,
        at: HashMap<DbName, Pos>,
    ) -> Result<Reading, LogError> {
        Reading::anew(store, places, clock, at, HashSet::new())
    }

    fn anew(
        store: &Store,
        places: &Places,
        clock: &dyn Clock,
        at: HashMap<DbName, Pos>,
        settling: HashSet<DbName>,
    ) -> Result<Reading, LogError> {
        let asof = clock.elapsed();
        // Positions first: what leads to them is in the log before its end then.
        let targets: BTreeMap<DbName, (Pos, Place)> = store
            .all()
            .iter()
            .map(|database| (database.name().clone(), (database.pos(), database.log_from())))
            .filter(|(_, (pos, _))| *pos != Pos::ZERO)
            .collect();
        let missing = targets
            .iter()
            .map(|(db, (pos, _))| (db.clone(), at.get(db).copied().unwrap_or(Pos::ZERO), *pos))
            .filter(|(db, at, pos)| at.txid < pos.txid && !settling.contains(db))
            .map(|(db, at, _)| (db, at))
            .collect();
        let from = places.begin(store, missing)?;
        let first = Some(First { targets, moved: HashSet::new() });
        let reader = store.log().reader(from);
        let end = store.log().end();
        let due = VecDeque::new();
        Ok(Reading { reader, end, asof, said: asof, passed: 0, at, settling, first, due })
    }

    /// What is next.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn next(&mut self, store: &Store, places: &Places, clock: &dyn Clock) -> Result<Step, LogError> {
        loop {
            if let Some((db, pos)) = self.due.pop_front() {
                self.settling.insert(db.clone());
                return Ok(Step::Settle(db, pos));
            }
            match self.reader.next(self.end) {
                Ok(Some(change)) => {
                    if self.continues(&change) {
                        self.passed = 0;
                        return Ok(Step::Change(change));
                    }
                    self.passed += 1;
                    if self.passed.is_multiple_of(MANY) {
                        return Ok(Step::Busy);
                    }
                    continue;
                }
                Ok(None) => {}
                // The replica was so slow that the log went on without it.
                Err(error) if error.is_missing() => {
                    self.again(store, places, clock)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if let Some(first) = self.first.take() {
                self.judge(first);
                continue;
            }
            if self.asof.saturating_sub(self.said) >= BUSY_BEAT {
                self.said = self.asof;
                return Ok(Step::Time(self.asof));
            }
            // The moment first: what was committed before it is before the end then.
            self.asof = clock.elapsed();
            let end = store.log().end();
            if end == self.end {
                return Ok(Step::Quiet);
            }
            self.end = end;
        }
    }

    /// The time was said.
    pub fn said(&mut self, at: Duration) {
        self.said = at;
    }

    /// The replica has settled this database and stands there.
    pub fn settled(
        &mut self,
        store: &Store,
        places: &Places,
        clock: &dyn Clock,
        positions: Vec<(DbName, Pos)>,
    ) -> Result<(), LogError> {
        for (db, pos) in positions {
            if self.settling.remove(&db) {
                self.at.insert(db, pos);
            }
        }
        self.again(store, places, clock)
    }

    /// Looks again for what continues the positions.
    fn again(&mut self, store: &Store, places: &Places, clock: &dyn Clock) -> Result<(), LogError> {
        let (at, settling) = (std::mem::take(&mut self.at), std::mem::take(&mut self.settling));
        let said = self.said;
        *self = Reading::anew(store, places, clock, at, settling)?;
        self.said = said;
        Ok(())
    }

    /// Whether the change set continues what the replica has; it has it then.
    fn continues(&mut self, change: &ScannedChange) -> bool {
        let meta = &change.meta;
        let other_past =
            |first: &First| first.targets.get(&meta.db).is_some_and(|(_, log_from)| change.place < *log_from);
        if self.settling.contains(&meta.db) || self.first.as_ref().is_some_and(other_past) {
            return false;
        }
        let at = self.at.get(&meta.db).copied().unwrap_or(Pos::ZERO);
        if meta.pre == at {
            self.at.insert(meta.db.clone(), meta.post);
            if let Some(first) = &mut self.first {
                first.moved.insert(meta.db.clone());
            }
            return true;
        }
        // At the beginning older ones are on the way, and gaps are judged at its end.
        if self.first.is_none() && meta.post.txid > at.txid {
            self.due.push_back((meta.db.clone(), meta.post));
        }
        false
    }

    /// What was there at the beginning is said: whatever the replica does not have of
    /// it now is not in the log.
    fn judge(&mut self, first: First) {
        let known = first.targets.keys();
        let unknown: Vec<DbName> =
            self.at.keys().filter(|db| !first.targets.contains_key(*db)).cloned().collect();
        for db in known.cloned().chain(unknown).filter(|db| !self.settling.contains(db)) {
            let at = self.at.get(&db).copied().unwrap_or(Pos::ZERO);
            let target = first.targets.get(&db).map_or(Pos::ZERO, |(pos, _)| *pos);
            let beyond = first.moved.contains(&db) && at.txid > target.txid;
            if at != target && !beyond {
                self.due.push_back((db, target));
            }
        }
    }
}
