//! The storage lease without its thread, for simulations: one request at a time, when
//! it is told to. Must not be used outside of tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::machine::{Machine, Step};
use super::{LEASE_KEY, put_reply, read_reply};
use crate::lease::{Member, Standing, Want};
use crate::object::ObjectStore;
use crate::words::Clock;

/// The lease in `store`, step by step.
pub(crate) struct SteppedLease {
    /// Never held while the store is asked.
    machine: Mutex<Machine>,
    /// A request is under way: as with a thread, there is one at a time.
    asking: AtomicBool,
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
}

impl SteppedLease {
    /// A lease of `member`.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
        member: Member,
        (ttl, poll): (Duration, Duration),
        seed: u64,
    ) -> SteppedLease {
        let machine = Mutex::new(Machine::new(member, ttl, poll, seed));
        SteppedLease { machine, asking: AtomicBool::new(false), store, clock }
    }

    /// As `Lease::want`.
    pub fn want(&self, want: Want) {
        self.machine.lock().want(want);
    }

    /// As `Lease::standing`.
    pub fn standing(&self) -> Standing {
        self.machine.lock().standing(self.clock.elapsed())
    }

    /// Makes the next request if one is due.
    pub fn step(&self) {
        if self.asking.swap(true, Ordering::Relaxed) {
            return;
        }
        self.ask();
        self.asking.store(false, Ordering::Relaxed);
    }

    fn ask(&self) {
        let step = self.machine.lock().next(self.clock.elapsed());
        match step {
            Step::Idle | Step::WaitUntil(_) => {}
            Step::Read => {
                let reply = read_reply(self.store.get(LEASE_KEY));
                self.machine.lock().read_replied(self.clock.elapsed(), reply);
            }
            Step::Put(body, cond) => {
                let reply = put_reply(self.store.put(LEASE_KEY, body.into(), cond));
                self.machine.lock().put_replied(self.clock.elapsed(), reply);
            }
        }
    }
}
