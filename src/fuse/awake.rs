//! Keeps the CPU that a client and the request loop do not run on busy while requests
//! come close upon each other. The scheduler sends a client to a CPU that does nothing
//! with each answer, and each of its requests is then an interrupt of another CPU, which
//! takes ten times as long on a virtual machine. Only where there are two CPUs: measured
//! there (docs/ARCHITECTURE.md); of more, one would not be enough. Takes next to nothing
//! from others (nice 19), and nothing when requests are rare. Must not know requests.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Without a request for so long it sleeps: longer than an fsync.
const QUIET: Duration = Duration::from_millis(5);

/// Spins between two looks at the clock.
const SPINS: u32 = 64;

/// The thread, from the first time that it is wanted on.
#[derive(Default)]
pub(super) struct Awake(Option<Arc<Shared>>);

struct Shared {
    requests: AtomicU32,
    /// The CPU that it keeps busy; [`NONE`]: none.
    at: AtomicUsize,
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// No CPU.
const NONE: usize = usize::MAX;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Nothing,
    /// The CPU that is to do something.
    Cpu(usize),
    End,
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.want(Wanted::End);
        }
    }
}

impl Awake {
    /// Never keeps anything awake.
    pub(super) const ASLEEP: Awake = Awake(None);

    /// A request came.
    pub(super) fn beat(&self) {
        if let Some(shared) = &self.0 {
            shared.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests come fast: the CPU beside `busy` is kept awake until they no longer do.
    pub(super) fn keep(&mut self, busy: usize, allowed: &CpuSet) {
        let Some(other) = the_other(busy, allowed) else { return };
        let shared = match &self.0 {
            Some(shared) => shared,
            None => match start() {
                Some(shared) => self.0.insert(shared),
                None => return,
            },
        };
        // The client may have gone to the other CPU meanwhile.
        if shared.at.swap(other, Ordering::Relaxed) != other {
            shared.want(Wanted::Cpu(other));
        }
    }
}

/// Of two CPUs the one that is not `busy`.
fn the_other(busy: usize, allowed: &CpuSet) -> Option<usize> {
    let mut others = (0..CpuSet::MAX_CPU).filter(|cpu| *cpu != busy && allowed.is_set(*cpu));
    let other = others.next()?;
    (allowed.count() == 2 && others.next().is_none()).then_some(other)
}

fn start() -> Option<Arc<Shared>> {
    let shared = Arc::new(Shared {
        requests: AtomicU32::new(0),
        at: AtomicUsize::new(NONE),
        wanted: Mutex::default(),
        changed: Condvar::new(),
    });
    let works = shared.clone();
    let thread = thread::Builder::new().name("litefs-awake".to_owned());
    thread.spawn(move || works.work()).ok().map(|_| shared)
}

impl Shared {
    fn want(&self, wanted: Wanted) {
        let mut now = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != Wanted::End {
            *now = wanted;
        }
        self.changed.notify_one();
    }

    fn work(&self) {
        // Not SCHED_IDLE: a CPU that runs only such threads counts as one that does
        // nothing (sched_idle_cpu in the kernel). Linux takes 0 for the calling thread.
        if rustix::process::setpriority_process(None, 19).is_err() {
            return;
        }
        loop {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let cpu = loop {
                match std::mem::take(&mut *wanted) {
                    Wanted::Nothing => {
                        wanted = self.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner);
                    }
                    Wanted::Cpu(cpu) => break cpu,
                    Wanted::End => return,
                }
            };
            drop(wanted);
            let mut one = CpuSet::new();
            one.set(cpu);
            if sched_setaffinity(None, &one).is_ok() {
                self.spin(cpu);
            }
            // As long as nobody wants another CPU instead.
            let _ = self.at.compare_exchange(cpu, NONE, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Until no request comes any more, or they come from there.
    fn spin(&self, cpu: usize) {
        let (mut seen, mut since) = (self.requests.load(Ordering::Relaxed), Instant::now());
        loop {
            (0..SPINS).for_each(|_| std::hint::spin_loop());
            if self.at.load(Ordering::Relaxed) != cpu {
                return;
            }
            let requests = self.requests.load(Ordering::Relaxed);
            if requests != seen {
                (seen, since) = (requests, Instant::now());
            } else if since.elapsed() > QUIET {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(numbers: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        numbers.iter().for_each(|cpu| set.set(*cpu));
        set
    }

    #[test]
    fn only_of_two_cpus_the_other_is_kept_awake() {
        assert_eq!(the_other(1, &cpus(&[0, 1])), Some(0));
        assert_eq!(the_other(3, &cpus(&[3, 7])), Some(7));
        assert_eq!(the_other(0, &cpus(&[0])), None);
        assert_eq!(the_other(0, &cpus(&[0, 1, 2])), None);
        assert_eq!(the_other(5, &cpus(&[0, 1])), None, "it runs on neither");
    }

    #[test]
    fn it_sleeps_when_no_request_comes_and_ends_with_its_loop() {
        let shared = start().expect("a thread");
        shared.requests.fetch_add(1, Ordering::Relaxed);
        shared.at.store(1, Ordering::Relaxed);
        shared.spin(0);
        // Returns only because nobody asks any more.
        shared.spin(1);
        let still = Arc::downgrade(&shared);
        drop(Awake(Some(shared)));
        let start = Instant::now();
        while still.strong_count() > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "the thread stays");
            thread::yield_now();
        }
    }
}
