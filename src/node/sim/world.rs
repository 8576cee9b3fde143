//! Time, the store and its faults. Whenever a node asks the store for something, the
//! world goes on before it is done and after: others act, time passes, the node may be
//! frozen for longer than its lease, or die there. Must not know what nodes do.

use std::path::Path;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::node::Node;
use crate::archive::{Manifest, keys, segment};
use crate::lease::SteppedLease;
use crate::object::{
    Etag, MemoryStore, Object, ObjectError, ObjectErrorKind, ObjectInfo, ObjectStore, PutCond,
};
use crate::words::{Clock, Epoch, Timestamp};

/// The lease's time to live.
pub(super) const TTL: Duration = Duration::from_secs(10);

/// One machine.
pub(super) struct Slot {
    /// `None` while it acts.
    pub node: Mutex<Option<Node>>,
    /// Of the process that runs.
    pub lease: Mutex<Option<Arc<SteppedLease>>>,
    /// The process died in the middle of a request.
    pub dead: AtomicBool,
    pub frozen_until: Mutex<Duration>,
    pub clock: Arc<SkewedClock>,
}

/// A put that the client has given up, and that may still be carried out.
struct Late {
    key: String,
    body: Bytes,
    cond: PutCond,
}

/// What was seen of the whole.
#[derive(Default)]
pub(super) struct Facts {
    /// What applications were told is committed.
    pub committed: Vec<u64>,
    /// Of that, what the archive has acknowledged.
    pub archived: Vec<u64>,
    /// Of that, what was on a disk that was lost before the archive had it.
    pub wiped: Vec<u64>,
    /// Of that, what branches that lost have.
    pub parked: Vec<u64>,
    /// The epochs of the seals, in the order in which they came into the log.
    pub seals: Vec<Epoch>,
}

/// The world.
pub(super) struct World {
    pub seed: u64,
    me: Weak<World>,
    time: Arc<Mutex<Duration>>,
    random: Mutex<StdRng>,
    pub raw: Arc<MemoryStore>,
    pub slots: Vec<Slot>,
    pub facts: Mutex<Facts>,
    late: Mutex<Vec<Late>>,
    /// No faults any more.
    calm: AtomicBool,
    depth: AtomicUsize,
}

/// A clock that starts anywhere and is a little too fast or too slow.
pub(super) struct SkewedClock {
    time: Arc<Mutex<Duration>>,
    offset: Duration,
    rate: f64,
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        let millis = i64::try_from(self.elapsed().as_millis()).unwrap_or(0);
        Timestamp::from_millis(1_800_000_000_000 + millis)
    }

    fn elapsed(&self) -> Duration {
        self.offset + self.time.lock().mul_f64(self.rate)
    }
}

impl World {
    pub fn new(seed: u64, nodes: usize) -> Arc<World> {
        let mut random = StdRng::seed_from_u64(seed);
        let time: Arc<Mutex<Duration>> = Arc::default();
        let slot = |_| {
            let clock = SkewedClock {
                time: Arc::clone(&time),
                offset: Duration::from_secs(random.random_range(0..1000)),
                rate: random.random_range(0.96..1.04),
            };
            Slot {
                node: Mutex::new(Some(Node::new(random.random()))),
                lease: Mutex::new(None),
                dead: AtomicBool::new(false),
                frozen_until: Mutex::default(),
                clock: Arc::new(clock),
            }
        };
        let slots = (0..nodes).map(slot).collect();
        Arc::new_cyclic(|me| World {
            seed,
            me: me.clone(),
            time,
            random: Mutex::new(random),
            raw: Arc::new(MemoryStore::new()),
            slots,
            facts: Mutex::default(),
            late: Mutex::default(),
            calm: AtomicBool::new(false),
            depth: AtomicUsize::new(0),
        })
    }

    pub fn draw(&self, below: u64) -> u64 {
        self.random.lock().random_range(0..below)
    }

    pub fn number(&self) -> u64 {
        self.random.lock().next_u64()
    }

    /// Random numbers for an archive's options.
    pub fn numbers(&self) -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let me = self.me.clone();
        Arc::new(move || me.upgrade().map_or(0, |world| world.number()))
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.draw(100) < percent
    }

    /// A fault of this chance, while there are faults.
    fn bad_luck(&self, percent: u64) -> bool {
        !self.calm.load(Ordering::Relaxed) && self.chance(percent)
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.late.lock().clear();
    }

    /// Time passes; at no moment two nodes hold the lease.
    pub fn pass(&self, by: Duration) {
        *self.time.lock() += by;
        self.check_holders();
    }

    pub fn is_frozen(&self, node: usize) -> bool {
        *self.time.lock() < *self.slots[node].frozen_until.lock()
    }

    pub fn freeze(&self, node: usize, span: Duration) {
        *self.slots[node].frozen_until.lock() = *self.time.lock() + span;
    }

    fn check_holders(&self) {
        let holds = |slot: &Slot| {
            let lease = slot.lease.lock().clone();
            lease.is_some_and(|lease| lease.standing().holder.this().is_some())
        };
        let holders: Vec<usize> = (0..self.slots.len()).filter(|node| holds(&self.slots[*node])).collect();
        assert!(holders.len() < 2, "seed {}: nodes {holders:?} hold the lease at once", self.seed);
    }

    /// The store as `node` reaches it.
    pub fn store(&self, node: usize) -> Arc<dyn ObjectStore> {
        Arc::new(Reached { world: self.me.clone(), raw: Arc::clone(&self.raw), node })
    }

    /// What happens while `node` waits for the store.
    fn meanwhile(&self, node: usize) {
        if self.calm.load(Ordering::Relaxed) {
            return self.pass(Duration::from_millis(5));
        }
        self.check_holders();
        self.pass(Duration::from_millis(1 + self.draw(30)));
        if self.chance(10) {
            self.land_late();
        }
        if self.depth.load(Ordering::Relaxed) >= self.slots.len() {
            return;
        }
        self.depth.fetch_add(1, Ordering::Relaxed);
        match self.draw(100) {
            // The request is slow; the node's own lease goes on.
            0..8 => {
                for _ in 0..=self.draw(4) {
                    self.pass(Duration::from_millis(self.draw(900)));
                    match self.draw(3) {
                        0 => self.step_lease(node),
                        _ => self.step_another(node),
                    }
                }
            }
            // The whole process is frozen, up to three times to live.
            8..10 => {
                for _ in 0..self.draw(30) {
                    self.pass(Duration::from_millis(self.draw(2000)));
                    self.step_another(node);
                }
            }
            10 => self.slots[node].dead.store(true, Ordering::Relaxed),
            _ => {}
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
    }

    fn step_lease(&self, node: usize) {
        let lease = self.slots[node].lease.lock().clone();
        if let Some(lease) = lease {
            lease.step();
            self.check_holders();
        }
    }

    fn step_another(&self, node: usize) {
        let others = self.slots.len() as u64 - 1;
        let other = (node + 1 + self.draw(others) as usize) % self.slots.len();
        self.step(other);
    }

    /// Lets a node act, unless it does already or cannot.
    pub fn step(&self, node: usize) {
        if self.is_frozen(node) {
            return;
        }
        let slot = &self.slots[node];
        let Some(mut it) = slot.node.lock().take() else { return };
        it.act(self, node);
        if slot.dead.swap(false, Ordering::Relaxed) {
            it.die(self, node);
        }
        *slot.node.lock() = Some(it);
        self.check_holders();
    }

    fn land_late(&self) {
        let late = {
            let mut late = self.late.lock();
            if late.is_empty() {
                return;
            }
            let at = self.draw(late.len() as u64) as usize;
            late.swap_remove(at)
        };
        if self.raw.put(&late.key, late.body.clone(), late.cond).is_ok() {
            self.landed(&late.key, &late.body);
        }
    }

    /// A put was carried out.
    fn landed(&self, key: &str, body: &[u8]) {
        let Some(seq) = keys::parse_segment(key) else { return };
        let manifest = self.raw.get(keys::MANIFEST).ok().flatten().expect("the manifest comes first");
        let horizon = Manifest::decode(&manifest.body).expect("a manifest").horizon.seq;
        let head = segment::decode(body).expect("a segment").head;
        if head.seal && seq > horizon {
            let seals = &mut self.facts.lock().seals;
            let grows = seals.last().is_none_or(|last| *last < head.epoch);
            assert!(grows, "seed {}: {} is sealed after {seals:?}", self.seed, head.epoch);
            seals.push(head.epoch);
        }
    }
}

/// The store as one node reaches it.
struct Reached {
    world: Weak<World>,
    raw: Arc<MemoryStore>,
    node: usize,
}

impl Reached {
    fn error(&self, kind: ObjectErrorKind) -> ObjectError {
        let node = self.node;
        ObjectError { kind, attempt: format!("a request of node {node}"), why: "the world is bad".to_owned() }
    }

    fn alive(&self, world: &World) -> Result<(), ObjectError> {
        if world.slots[self.node].dead.load(Ordering::Relaxed) {
            return Err(self.error(ObjectErrorKind::Unreachable));
        }
        Ok(())
    }

    fn ask<T>(&self, deed: impl FnOnce(&MemoryStore) -> Result<T, ObjectError>) -> Result<T, ObjectError> {
        let Some(world) = self.world.upgrade() else { return deed(&self.raw) };
        self.alive(&world)?;
        world.meanwhile(self.node);
        self.alive(&world)?;
        if world.bad_luck(3) {
            return Err(self.error(ObjectErrorKind::Unreachable));
        }
        let answer = deed(&self.raw);
        world.meanwhile(self.node);
        self.alive(&world)?;
        answer
    }
}

impl ObjectStore for Reached {
    fn get(&self, key: &str) -> Result<Option<Object>, ObjectError> {
        self.ask(|store| store.get(key))
    }

    // Restores read from several threads: the world is not theirs.
    fn get_range(&self, key: &str, offset: u64, len: u64) -> Result<Bytes, ObjectError> {
        self.raw.get_range(key, offset, len)
    }

    fn head(&self, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.ask(|store| store.head(key))
    }

    fn put(&self, key: &str, body: Bytes, cond: PutCond) -> Result<Etag, ObjectError> {
        let Some(world) = self.world.upgrade() else { return self.raw.put(key, body, cond) };
        if world.bad_luck(4) {
            // Not carried out in time; perhaps later.
            if world.chance(60) {
                world.late.lock().push(Late { key: key.to_owned(), body, cond });
            }
            world.meanwhile(self.node);
            return Err(self.error(ObjectErrorKind::Unknown));
        }
        let lost = world.bad_luck(4);
        let answer = self.ask(|store| {
            let etag = store.put(key, body.clone(), cond)?;
            world.landed(key, &body);
            Ok(etag)
        });
        if lost && answer.is_ok() {
            return Err(self.error(ObjectErrorKind::Unknown));
        }
        answer
    }

    fn put_file(&self, key: &str, path: &Path) -> Result<(), ObjectError> {
        self.ask(|store| store.put_file(key, path))
    }

    fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.ask(|store| store.delete(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.ask(|store| store.list(prefix, after))
    }

    fn describe(&self) -> String {
        self.raw.describe()
    }
}
