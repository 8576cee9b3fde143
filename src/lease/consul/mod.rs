//! The lease in Consul: one key that a session locks, and a thread that asks and waits
//! as the machine says. Must not decide anything itself.

mod api;
mod machine;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::{Holder, Lease, Member, Standing, Want};
use crate::words::Clock;
use api::Api;
pub use api::ConsulPlace;
use machine::{Machine, Reply, Step};

/// How soon what failed is tried again, at most; a lock that was just lost is refused
/// until the lock delay is over.
const AGAIN: Duration = Duration::from_millis(250);

/// What a Consul lease is told.
pub struct ConsulLeaseOptions {
    /// This node.
    pub member: Member,
    /// The agent and the key.
    pub place: ConsulPlace,
    /// How long a session holds without renewal; Consul asks for ten seconds at least.
    pub ttl: Duration,
    /// How long nobody can lock the key after the session that had locked it was lost.
    pub lock_delay: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The lease in Consul.
pub struct ConsulLease {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    ttl: Duration,
    lock_delay: Duration,
    /// The only lock; never held while Consul is asked.
    state: Mutex<State>,
    /// The standing may have changed.
    changed: Condvar,
    /// Something else is wanted.
    wanted: Notify,
}

struct State {
    machine: Machine,
    stop: bool,
}

impl ConsulLease {
    /// The lease that `options` name. Consul is not asked yet.
    ///
    /// # Errors
    /// If the process can have no more threads, or no certificates to trust.
    pub fn new(options: ConsulLeaseOptions) -> std::io::Result<ConsulLease> {
        let ConsulLeaseOptions { member, place, ttl, lock_delay, clock } = options;
        // Two tries must fit into what is left of a term when it is renewed.
        let api = Api::new(place, ttl / 4)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let machine = Machine::new(member, ttl, AGAIN, rand::random());
        let shared = Arc::new(Shared {
            clock,
            ttl,
            lock_delay,
            state: Mutex::new(State { machine, stop: false }),
            changed: Condvar::new(),
            wanted: Notify::new(),
        });
        let driver = Arc::clone(&shared);
        let drive = move || runtime.block_on(driver.drive(&api));
        let thread = std::thread::Builder::new().name("litefs-lease".to_owned()).spawn(drive)?;
        Ok(ConsulLease { shared, thread: Some(thread) })
    }
}

impl Drop for ConsulLease {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wanted.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    async fn drive(&self, api: &Api) {
        while let Some(step) = self.next() {
            let reply = match step {
                Step::Idle => {
                    self.wanted.notified().await;
                    continue;
                }
                Step::WaitUntil(moment) => {
                    let pause = moment.saturating_sub(self.clock.elapsed());
                    // Over, or something else is wanted: looked at again either way.
                    let _ = tokio::time::timeout(pause, self.wanted.notified()).await;
                    continue;
                }
                Step::Read(index, wait) => {
                    tokio::select! {
                        found = api.read(index, wait) => found.map(Reply::Read),
                        () = self.wanted.notified() => Ok(Reply::Interrupted),
                    }
                }
                Step::Create => api.create(self.ttl, self.lock_delay).await.map(Reply::Created),
                Step::Renew(session) => api.renew(&session).await.map(Reply::Renewed),
                Step::Lock(lock) => api.lock(&lock).await.map(Reply::Locked),
                Step::Unlock(session, body) => api.unlock(&session, &body).await.map(Reply::Unlocked),
                Step::Destroy(session) => api.destroy(&session).await.map(|()| Reply::Destroyed),
            };
            let reply = reply.unwrap_or_else(Reply::Failed);
            self.state.lock().machine.replied(self.clock.elapsed(), reply);
            self.changed.notify_all();
        }
    }

    /// What to do; `None`: nothing any more.
    fn next(&self) -> Option<Step> {
        let mut state = self.state.lock();
        (!state.stop).then(|| state.machine.next(self.clock.elapsed()))
    }

    fn change(&self, change: impl FnOnce(&mut Machine)) {
        change(&mut self.state.lock().machine);
        self.wanted.notify_one();
        self.changed.notify_all();
    }
}

impl Lease for ConsulLease {
    fn want(&self, want: Want) {
        self.shared.change(|machine| machine.want(want));
    }

    fn standing(&self) -> Standing {
        self.shared.state.lock().machine.standing(self.shared.clock.elapsed())
    }

    fn look(&self) {
        self.shared.change(Machine::look);
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
                Holder::This { until, .. } => left.min(until.saturating_sub(now)),
                _ => left,
            };
            self.shared.changed.wait_for(&mut state, pause);
        }
    }
}
