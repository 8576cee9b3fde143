//! Who holds the halt lock of which database, and until when. Pure: time is told.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::words::{DbName, HaltId, NodeId};

/// A claim that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Not {
    /// Nobody has the lock.
    Held,
    /// Another hold has it: of this node.
    Yours(NodeId),
    /// Something is being done under it.
    Idle,
}

#[derive(Debug)]
struct Lock {
    /// The hold; none: it is being taken away.
    id: Option<HaltId>,
    node: NodeId,
    expires: Duration,
    /// Something is being done under it: it does not expire, and ends only after that.
    busy: bool,
}

impl Lock {
    fn is_over(&self, now: Duration) -> bool {
        !self.busy && self.expires <= now
    }
}

/// The locks that a primary has given away.
#[derive(Debug)]
pub(super) struct Table {
    locks: BTreeMap<DbName, Lock>,
    ttl: Duration,
}

impl Table {
    /// No lock yet; each holds for `ttl` after it was heard of last.
    pub fn new(ttl: Duration) -> Table {
        Table { locks: BTreeMap::new(), ttl }
    }

    /// Gives the lock away, if nobody has it. It is busy until [`Table::done`].
    pub fn give(&mut self, db: &DbName, id: HaltId, node: NodeId, now: Duration) -> Result<(), Not> {
        match self.locks.get(db) {
            Some(lock) => Err(Not::Yours(lock.node)),
            None => {
                let expires = now + self.ttl;
                self.locks.insert(db.clone(), Lock { id: Some(id), node, expires, busy: true });
                Ok(())
            }
        }
    }

    fn held(&mut self, db: &DbName, id: HaltId, node: NodeId, now: Duration) -> Result<&mut Lock, Not> {
        match self.locks.get_mut(db) {
            Some(lock) if (lock.id, lock.node) == (Some(id), node) && !lock.is_over(now) => Ok(lock),
            Some(lock) if lock.id.is_some_and(|held| held != id) || lock.node != node => {
                Err(Not::Yours(lock.node))
            }
            Some(_) | None => Err(Not::Held),
        }
    }

    /// It is heard of.
    pub fn renew(&mut self, db: &DbName, id: HaltId, node: NodeId, now: Duration) -> Result<(), Not> {
        let ttl = self.ttl;
        self.held(db, id, node, now).map(|lock| lock.expires = now + ttl)
    }

    /// Something is done under it from now on, until [`Table::done`].
    pub fn begin(&mut self, db: &DbName, id: HaltId, node: NodeId, now: Duration) -> Result<(), Not> {
        let lock = self.held(db, id, node, now)?;
        if std::mem::replace(&mut lock.busy, true) { Err(Not::Idle) } else { Ok(()) }
    }

    /// That is over.
    pub fn done(&mut self, db: &DbName, now: Duration) {
        let ttl = self.ttl;
        if let Some(lock) = self.locks.get_mut(db) {
            lock.busy = false;
            lock.expires = now + ttl;
        }
    }

    /// It is given back: it counts no more, and others get it after [`Table::forget`].
    /// Refused while something is being done under it.
    pub fn release(&mut self, db: &DbName, id: HaltId, node: NodeId, now: Duration) -> Result<(), Not> {
        let lock = self.held(db, id, node, now)?;
        if lock.busy {
            return Err(Not::Idle);
        }
        (lock.id, lock.busy) = (None, true);
        Ok(())
    }

    /// Others may get it.
    pub fn forget(&mut self, db: &DbName) {
        self.locks.remove(db);
    }

    /// What was not heard of for too long counts no more; whose it was. Others get it
    /// after [`Table::forget`].
    pub fn expire(&mut self, now: Duration) -> Vec<(DbName, NodeId)> {
        let over = self.locks.iter_mut().filter(|(_, lock)| lock.is_over(now));
        over.map(|(db, lock)| {
            (lock.id, lock.busy) = (None, true);
            (db.clone(), lock.node)
        })
        .collect()
    }

    /// When the next one expires, if nothing is heard of it.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.locks.values().filter(|lock| !lock.busy).map(|lock| lock.expires).min()
    }

    /// Whether something is being done under any of them.
    pub fn is_busy(&self) -> bool {
        self.locks.values().any(|lock| lock.busy)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Takes all of them away.
    pub fn clear(&mut self) -> Vec<DbName> {
        std::mem::take(&mut self.locks).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Clock, ManualClock, Timestamp};

    const TTL: Duration = Duration::from_secs(10);

    fn db(name: &str) -> DbName {
        DbName::new(name).expect("a name")
    }

    fn given(now: Duration) -> Table {
        let mut table = Table::new(TTL);
        table.give(&db("a"), HaltId::new(1), NodeId::new(7), now).expect("nobody has it");
        table.done(&db("a"), now);
        table
    }

    #[test]
    fn one_hold_has_a_database_and_others_are_told_whose_it_is() {
        let mut table = given(Duration::ZERO);
        let again = table.give(&db("a"), HaltId::new(2), NodeId::new(8), Duration::ZERO);
        assert_eq!(again, Err(Not::Yours(NodeId::new(7))));
        assert_eq!(table.give(&db("b"), HaltId::new(2), NodeId::new(8), Duration::ZERO), Ok(()));
    }

    #[test]
    fn neither_another_id_nor_another_node_renews_writes_or_releases() {
        let mut table = given(Duration::ZERO);
        for (id, node) in [(2, 7), (1, 8)] {
            let (id, node) = (HaltId::new(id), NodeId::new(node));
            let no = Err(Not::Yours(NodeId::new(7)));
            assert_eq!(table.renew(&db("a"), id, node, Duration::ZERO), no);
            assert_eq!(table.begin(&db("a"), id, node, Duration::ZERO), no);
            assert_eq!(table.release(&db("a"), id, node, Duration::ZERO), no);
        }
        let (a, id, node) = (db("a"), HaltId::new(1), NodeId::new(7));
        assert_eq!(table.begin(&db("b"), id, node, Duration::ZERO), Err(Not::Held));
        assert_eq!(table.release(&a, id, node, Duration::ZERO), Ok(()));
        // It counts no more, and nobody gets it before the applications go on.
        assert_eq!(table.renew(&a, id, node, Duration::ZERO), Err(Not::Held));
        assert_eq!(table.give(&a, HaltId::new(2), node, Duration::ZERO), Err(Not::Yours(node)));
        table.forget(&a);
        assert!(table.is_empty());
    }

    #[test]
    fn what_is_not_heard_of_expires_and_what_is_does_not() {
        let clock = ManualClock::new(Timestamp::from_millis(0));
        let mut table = given(clock.elapsed());
        let (a, id, node) = (db("a"), HaltId::new(1), NodeId::new(7));
        clock.advance(TTL / 2);
        assert_eq!(table.renew(&a, id, node, clock.elapsed()), Ok(()));
        clock.advance(TTL - Duration::from_millis(1));
        assert!(table.expire(clock.elapsed()).is_empty());
        clock.advance(Duration::from_millis(1));
        assert_eq!(table.next_expiry(), Some(clock.elapsed()));
        // Whether somebody noticed or not.
        assert_eq!(table.begin(&a, id, node, clock.elapsed()), Err(Not::Held));
        assert_eq!(table.expire(clock.elapsed()), [(a.clone(), node)]);
        assert!(table.expire(clock.elapsed()).is_empty());
        assert_eq!(table.renew(&a, id, node, clock.elapsed()), Err(Not::Held));
    }

    #[test]
    fn while_something_is_done_under_it_it_neither_expires_nor_ends_nor_is_there_more() {
        let mut table = given(Duration::ZERO);
        let (a, id, node) = (db("a"), HaltId::new(1), NodeId::new(7));
        assert_eq!(table.begin(&a, id, node, Duration::ZERO), Ok(()));
        assert_eq!(table.begin(&a, id, node, Duration::ZERO), Err(Not::Idle));
        assert_eq!(table.release(&a, id, node, TTL * 2), Err(Not::Idle));
        assert!(table.is_busy() && table.next_expiry().is_none());
        assert!(table.expire(TTL * 9).is_empty());
        table.done(&a, TTL * 9);
        assert_eq!(table.next_expiry(), Some(TTL * 10));
    }
}
