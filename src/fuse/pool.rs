//! Threads for requests that may fsync or wait: one fsync in a request loop would hold
//! up every other file. A thread is made when all are busy and goes after some
//! seconds without work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

type Job = Box<dyn FnOnce() + Send>;

/// More requests than this wait in the queue.
const MOST: usize = 64;
const LINGER: Duration = Duration::from_secs(10);

/// The threads.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Receiver<Job>,
    threads: AtomicUsize,
    /// Threads that wait for work, less the jobs that wait for a thread.
    spare: AtomicIsize,
}

impl Pool {
    pub(super) fn new() -> Pool {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let shared = Shared { queue, threads: AtomicUsize::new(0), spare: AtomicIsize::new(0) };
        Pool { jobs, shared: Arc::new(shared) }
    }

    /// Runs `job` on a thread of the pool, or on this one if none can be made.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if self.shared.spare.fetch_sub(1, Ordering::AcqRel) <= 0 && !self.grow() {
            self.shared.spare.fetch_add(1, Ordering::AcqRel);
            return job();
        }
        // Never fails: `shared` holds a receiver.
        if let Err(rejected) = self.jobs.send(Box::new(job)) {
            rejected.into_inner()();
        }
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
    fn work(&self) {
        super::mount::raise_priority();
        loop {
            match self.queue.recv_timeout(LINGER) {
                Ok(job) => {
                    // A reply that is dropped in a panic answers EIO.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!(
                            "a request panicked: this is a bug in litefs; it was answered with EIO"
                        );
                    }
                    self.spare.fetch_add(1, Ordering::AcqRel);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let unneeded = |spare: isize| (spare > 0).then(|| spare - 1);
                    if self.spare.fetch_update(Ordering::AcqRel, Ordering::Acquire, unneeded).is_ok() {
                        break;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.threads.fetch_sub(1, Ordering::AcqRel);
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
