//! A store that fails on purpose, for tests and simulations: by script (fail before
//! the call, or do it and lose the reply), by seeded chance, by partition, after a
//! number of calls, or at the hand of a hook that may also block. Must not fail in a
//! way that a real store does not.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Etag, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, Op, PutCond};
use crate::words::Timestamp;

/// One call on the store, as hooks and the record see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The kind of call.
    pub op: Op,
    /// The key, or the prefix of a listing.
    pub key: String,
    /// How many calls came before it.
    pub number: u64,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done; the call fails with this kind.
    Before(ObjectErrorKind),
    /// The call is done, its reply is lost: it fails with kind `Unknown` (a call
    /// that changes nothing: with `Unreachable`).
    After,
}

/// Which calls fail, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only calls of this kind; `None`: of any.
    pub op: Option<Op>,
    /// Only keys that contain this.
    pub key: String,
    /// So many matching calls pass first.
    pub skip: u64,
    /// So many fail then.
    pub times: u64,
    /// How they fail.
    pub fault: Fault,
}

/// What a hook decides: `None` lets the call through.
pub type Hook = dyn Fn(&Call) -> Option<Fault> + Send + Sync;

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    chance: Option<(StdRng, f64)>,
    partitioned: bool,
    allowed: Option<u64>,
    calls: Vec<Call>,
    hook: Option<Arc<Hook>>,
}

/// A store that fails on purpose.
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    state: Mutex<State>,
}

impl Faulty {
    /// `inner`, without faults as yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Faulty {
        Faulty { inner, state: Mutex::default() }
    }

    /// Adds a rule; the first that matches a call decides it.
    pub fn rule(&self, rule: Rule) {
        self.state.lock().rules.push(rule);
    }

    /// The next call of kind `op` on a key that contains `key` fails with `kind`, undone.
    pub fn fail_next(&self, op: Op, key: &str, kind: ObjectErrorKind) {
        self.rule(Rule { op: Some(op), key: key.to_owned(), skip: 0, times: 1, fault: Fault::Before(kind) });
    }

    /// The next call of kind `op` on a key that contains `key` is done, its reply lost.
    pub fn lose_next_reply(&self, op: Op, key: &str) {
        self.rule(Rule { op: Some(op), key: key.to_owned(), skip: 0, times: 1, fault: Fault::After });
    }

    /// From now on each call fails with this chance (0 to 1), half of them after
    /// the deed; the same seed and calls give the same faults.
    pub fn chance(&self, seed: u64, chance: f64) {
        self.state.lock().chance = Some((StdRng::seed_from_u64(seed), chance.clamp(0.0, 1.0)));
    }

    /// Cuts the store off, or connects it again.
    pub fn partition(&self, cut: bool) {
        self.state.lock().partitioned = cut;
    }

    /// Lets `calls` more calls through, then none: how a process that dies there
    /// looks to the store.
    pub fn die_after(&self, calls: u64) {
        self.state.lock().allowed = Some(calls);
    }

    /// Asks `hook` before each call, outside of any lock: it may block, look at the
    /// store, or make the call fail.
    pub fn hook(&self, hook: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) {
        self.state.lock().hook = Some(Arc::new(hook));
    }

    /// Takes every fault away; the record of calls stays.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        let calls = std::mem::take(&mut state.calls);
        *state = State { calls, ..State::default() };
    }

    /// The calls until now.
    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().calls.clone()
    }

    /// Forgets the calls until now.
    pub fn forget_calls(&self) {
        self.state.lock().calls.clear();
    }

    fn fault(&self, op: Op, key: &str) -> Option<Fault> {
        let (call, hook) = {
            let mut state = self.state.lock();
            let call = Call { op, key: key.to_owned(), number: state.calls.len() as u64 };
            state.calls.push(call.clone());
            if let Some(fault) = state.decide(&call) {
                return Some(fault);
            }
            (call, state.hook.clone())
        };
        hook.and_then(|hook| hook(&call))
    }

    fn run<T>(
        &self,
        op: Op,
        key: &str,
        call: impl FnOnce(&dyn ObjectStore) -> Result<T, ObjectError>,
    ) -> Result<T, ObjectError> {
        match self.fault(op, key) {
            None => call(&*self.inner),
            Some(Fault::Before(kind)) => Err(self.error(op, key, kind)),
            Some(Fault::After) => {
                call(&*self.inner)?;
                let kind = if op.writes() { ObjectErrorKind::Unknown } else { ObjectErrorKind::Unreachable };
                Err(self.error(op, key, kind))
            }
        }
    }

    fn error(&self, op: Op, key: &str, kind: ObjectErrorKind) -> ObjectError {
        ObjectError {
            kind,
            attempt: format!("{op:?} {key} in {}", self.inner.describe()),
            why: format!("a test made it fail ({kind:?})"),
        }
    }
}

impl State {
    fn decide(&mut self, call: &Call) -> Option<Fault> {
        let cut = Fault::Before(ObjectErrorKind::Unreachable);
        if self.partitioned {
            return Some(cut);
        }
        match &mut self.allowed {
            Some(0) => return Some(cut),
            Some(left) => *left -= 1,
            None => {}
        }
        let matching = self.rules.iter_mut().find(|rule| {
            rule.times > 0 && rule.op.is_none_or(|op| op == call.op) && call.key.contains(&rule.key)
        });
        if let Some(rule) = matching {
            if rule.skip == 0 {
                rule.times -= 1;
                return Some(rule.fault);
            }
            rule.skip -= 1;
        }
        let (random, chance) = self.chance.as_mut()?;
        if !random.random_bool(*chance) {
            return None;
        }
        Some(if random.random_bool(0.5) { Fault::After } else { cut })
    }
}

impl ObjectStore for Faulty {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        self.run(Op::Get, key, |store| store.get(key))
    }

    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        self.run(Op::GetRange, key, |store| store.get_range(key, offset, len))
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.run(Op::Head, key, |store| store.head(key))
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        self.run(Op::Put, key, |store| store.put(key, body, cond))
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.run(Op::PutFile, key, |store| store.put_file(key, path))
    }

    fn put_dated(&self, key: &str, body: Bytes, cond: PutCond, made: Timestamp) -> Result<Etag, ObjectError> {
        self.run(Op::Put, key, |store| store.put_dated(key, body, cond, made))
    }

    fn put_file_dated(&self, key: &str, path: &Path, made: Timestamp) -> Result<(), ObjectError> {
        self.run(Op::PutFile, key, |store| store.put_file_dated(key, path, made))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.run(Op::Delete, key, |store| store.delete(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.run(Op::List, prefix, |store| store.list(prefix, after))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn expect_existing(&self) {
        self.inner.expect_existing();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::MemoryStore;

    fn faulty() -> Faulty {
        Faulty::new(Arc::new(MemoryStore::new()))
    }

    fn put(store: &Faulty, key: &str) -> Result<Etag, ObjectErrorKind> {
        store.put(key, Bytes::from_static(b"x"), PutCond::IfAbsent).map_err(|error| error.kind)
    }

    #[test]
    fn a_lost_reply_leaves_the_deed_done() {
        let store = faulty();
        store.lose_next_reply(Op::Put, "a");
        assert_eq!(put(&store, "a"), Err(ObjectErrorKind::Unknown));
        assert_eq!(put(&store, "a"), Err(ObjectErrorKind::Precondition));
    }

    #[test]
    fn a_failure_before_leaves_it_undone() {
        let store = faulty();
        store.rule(Rule {
            op: Some(Op::Put),
            key: "b".to_owned(),
            skip: 1,
            times: 1,
            fault: Fault::Before(ObjectErrorKind::Unreachable),
        });
        assert!(put(&store, "b1").is_ok());
        assert_eq!(put(&store, "b2"), Err(ObjectErrorKind::Unreachable));
        assert!(put(&store, "b2").is_ok());
    }

    #[test]
    fn a_partition_and_a_death_stop_every_call_until_healed() {
        let store = faulty();
        store.partition(true);
        assert_eq!(put(&store, "a"), Err(ObjectErrorKind::Unreachable));
        store.partition(false);
        store.die_after(1);
        assert!(put(&store, "a").is_ok());
        assert!(store.list("", None).is_err());
        store.heal();
        assert_eq!(store.list("", None).map(|list| list.len()).ok(), Some(1));
        assert_eq!(store.calls().len(), 4);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let run = |seed| {
            let store = faulty();
            store.chance(seed, 0.5);
            (0..64).map(|n| put(&store, &n.to_string()).err()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
