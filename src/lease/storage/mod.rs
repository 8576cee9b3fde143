//! The lease in the archive's own storage: one object, changed by compare-and-swap,
//! and a thread that reads, puts and waits as the machine says. Must not decide
//! anything itself.

mod machine;
#[cfg(test)]
mod stepped;

#[cfg(test)]
pub(crate) use stepped::SteppedLease;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Lease, Member, Standing, Want};
use crate::object::{Etag, Object, ObjectError, ObjectErrorKind, ObjectStore};
use crate::words::Clock;
use machine::{Machine, PutReply, ReadReply, Step};

/// The key of the lease's object.
pub const LEASE_KEY: &str = "lease.json";

/// What a storage lease is told.
pub struct StorageLeaseOptions {
    /// This node.
    pub member: Member,
    /// How long a term holds without renewal.
    pub ttl: Duration,
    /// How often a node that wants the lease looks at it while another has it: it takes
    /// a dead holder's lease over at most a time to live and this after it died.
    pub poll: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The lease in the archive's storage.
pub struct StorageLease {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    /// The only lock; never held while the store is asked.
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    machine: Machine,
    stop: bool,
}

impl StorageLease {
    /// The lease in `store`, which should be one of `S3Store::for_lease`: what else
    /// uses its connections can delay a renewal.
    ///
    /// # Errors
    /// If the process can have no more threads.
    pub fn new(store: Arc<dyn ObjectStore>, options: StorageLeaseOptions) -> std::io::Result<StorageLease> {
        let StorageLeaseOptions { member, ttl, poll, clock } = options;
        let machine = Machine::new(member, ttl, poll, rand::random());
        let shared = Arc::new(Shared {
            store,
            clock,
            state: Mutex::new(State { machine, stop: false }),
            changed: Condvar::new(),
        });
        let driver = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("litefs-lease".to_owned()).spawn(move || driver.drive())?;
        Ok(StorageLease { shared, thread: Some(thread) })
    }
}

impl Drop for StorageLease {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn drive(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            match state.machine.next(self.clock.elapsed()) {
                Step::Idle => self.changed.wait(&mut state),
                Step::WaitUntil(moment) => {
                    let pause = moment.saturating_sub(self.clock.elapsed());
                    self.changed.wait_for(&mut state, pause);
                }
                Step::Read => {
                    let reply = MutexGuard::unlocked(&mut state, || self.store.get(LEASE_KEY));
                    state.machine.read_replied(self.clock.elapsed(), read_reply(reply));
                    self.changed.notify_all();
                }
                Step::Put(body, cond) => {
                    let reply =
                        MutexGuard::unlocked(&mut state, || self.store.put(LEASE_KEY, body.into(), cond));
                    state.machine.put_replied(self.clock.elapsed(), put_reply(reply));
                    self.changed.notify_all();
                }
            }
        }
    }
}

/// What the store's answer to a read is to the machine.
fn read_reply(reply: Result<Option<Object>, ObjectError>) -> ReadReply {
    match reply {
        Ok(found) => Ok(found.map(|object| (object.body.to_vec(), object.etag))),
        Err(error) => Err(error.to_string()),
    }
}

/// What the store's answer to a put is to the machine.
fn put_reply(reply: Result<Etag, ObjectError>) -> PutReply {
    match reply {
        Ok(etag) => PutReply::Done(etag),
        Err(error) if error.kind == ObjectErrorKind::Precondition => PutReply::Unmet,
        Err(error) => PutReply::Failed(error.to_string()),
    }
}

impl Lease for StorageLease {
    fn want(&self, want: Want) {
        self.shared.state.lock().machine.want(want);
        self.shared.changed.notify_all();
    }

    fn standing(&self) -> Standing {
        self.shared.state.lock().machine.standing(self.shared.clock.elapsed())
    }

    fn look(&self) {
        self.shared.state.lock().machine.look();
        self.shared.changed.notify_all();
    }

    fn wait(&self, timeout: Duration, enough: &mut dyn FnMut(&Standing) -> bool) -> Option<Standing> {
        let begin = Instant::now();
        let mut state = self.shared.state.lock();
        loop {
            let now = self.shared.clock.elapsed();
            let standing = state.machine.standing(now);
            if enough(&standing) {
                return Some(standing);
            }
            let left = timeout.checked_sub(begin.elapsed()).filter(|left| !left.is_zero())?;
            // A term that runs out is a change that nobody notifies of.
            let pause = match standing.holder {
                super::Holder::This { until, .. } => left.min(until.saturating_sub(now)),
                _ => left,
            };
            self.shared.changed.wait_for(&mut state, pause);
        }
    }
}
