//! Threads for requests that may fsync or wait: one fsync in a request loop would hold
//! up every other file. A thread is made when all are busy and goes after some
//! seconds without work.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::placement::{Anywhere, raise_priority};

type Job = Box<dyn FnOnce() + Send>;

/// More requests than this wait in the queue.
const MOST: usize = 64;
const LINGER: Duration = Duration::from_secs(10);

/// The threads.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    _open: Arc<Open>,
}

/// Dropped with the last handle of the pool: its threads end then.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.arrived.notify_all();
    }
}

#[derive(Debug)]
struct Shared {
    /// A plain queue: a channel spins and yields before it sleeps, which on a few CPUs
    /// takes them from the applications that the job is for.
    queue: Mutex<Queue>,
    arrived: Condvar,
    threads: AtomicUsize,
    /// Threads that wait for work, less the jobs that wait for a thread.
    spare: AtomicIsize,
    /// Where threads may run: a new one would inherit that its maker is bound.
    anywhere: Anywhere,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.jobs.len())
    }
}

impl Pool {
    pub(super) fn new() -> Pool {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            threads: AtomicUsize::new(0),
            spare: AtomicIsize::new(0),
            anywhere: Anywhere::now(),
        });
        Pool { _open: Arc::new(Open(shared.clone())), shared }
    }

    /// Runs `job` on a thread of the pool, or on this one if none can be made.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if self.shared.spare.fetch_sub(1, Ordering::AcqRel) <= 0 && !self.grow() {
            self.shared.spare.fetch_add(1, Ordering::AcqRel);
            return job();
        }
        self.shared.queue().jobs.push_back(Box::new(job));
        self.shared.arrived.notify_one();
    }

    /// Adds a thread if there may be more; false if there is none at all.
    fn grow(&self) -> bool {
        let threads = &self.shared.threads;
        if threads.fetch_add(1, Ordering::AcqRel) >= MOST {
            threads.fetch_sub(1, Ordering::AcqRel);
            return true;
        }
        let shared = self.shared.clone();
        let spawned = thread::Builder::new().name("litefs-pool".to_owned()).spawn(move || shared.work());
        if spawned.is_err() {
            return threads.fetch_sub(1, Ordering::AcqRel) > 1;
        }
        self.shared.spare.fetch_add(1, Ordering::AcqRel);
        true
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        self.anywhere.apply();
        raise_priority();
        while let Some(job) = self.next() {
            // A reply that is dropped in a panic answers EIO.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a request panicked: this is a bug in litefs; it was answered with EIO");
            }
            self.spare.fetch_add(1, Ordering::AcqRel);
        }
        self.threads.fetch_sub(1, Ordering::AcqRel);
    }

    /// The next job; `None` when this thread is not needed any more.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            let waited = self.arrived.wait_timeout(queue, LINGER).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            if waited.1.timed_out() && queue.jobs.is_empty() {
                let unneeded = |spare: isize| (spare > 0).then(|| spare - 1);
                if self.spare.fetch_update(Ordering::AcqRel, Ordering::Acquire, unneeded).is_ok() {
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let pool = Pool::new();
        let barrier = Arc::new(Barrier::new(17));
        for _ in 0..16 {
            let barrier = barrier.clone();
            pool.run(move || {
                barrier.wait();
            });
        }
        barrier.wait();
    }

    #[test]
    fn a_panic_does_not_cost_a_thread() {
        let pool = Pool::new();
        let (done, wait) = crossbeam_channel::unbounded();
        for round in 0..200 {
            let done = done.clone();
            pool.run(move || {
                done.send(round).expect("the test waits");
                assert!(round % 2 == 1, "on purpose");
            });
        }
        for _ in 0..200 {
            wait.recv_timeout(Duration::from_secs(60)).expect("every job runs");
        }
    }
}
