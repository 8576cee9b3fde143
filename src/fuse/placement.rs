//! Where the threads that serve requests run, and before whom. On the same CPU a round
//! trip costs a tenth of one between CPUs, and the scheduler, which sees two threads
//! that wait for each other, likes to spread them. Must not know requests.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::awake::Awake;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// So many requests in a row of one thread make it worth following, and it is asked
/// again where it runs after so many more.
const FOLLOW_AFTER: u32 = 32;
const ASK_AGAIN: u32 = 1024;

/// Requests of one thread in so short a time each are a burst.
const BURST: Duration = Duration::from_micros(500);

thread_local! {
    static RAISED: Cell<bool> = const { Cell::new(false) };
    static FOLLOWED: RefCell<Followed> = const { RefCell::new(Followed::NOBODY) };
}

/// Puts the calling thread before the applications that wait for it, once, if allowed.
/// SCHED_FIFO: it does not wait for the end of anybody's time slice (4 ms) after an
/// fsync, and stays on the CPU where it ran. The kernel leaves a part of each second to
/// others (sched_rt_runtime_us). Threads that it makes begin as ordinary ones.
pub(super) fn raise_priority() {
    if RAISED.replace(true) {
        return;
    }
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads `first`, which lives until it returns; 0 is the calling
    // thread.
    let done = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const first)
    };
    if done < 0 {
        // Linux takes 0 for the calling thread, not the process. Not allowed without
        // CAP_SYS_NICE either, and good enough without.
        let _ = rustix::process::setpriority_process(None, -20);
    }
}

/// Notes that the calling thread, a request loop, has a request of thread `tid`: where
/// they all come from one, the loop goes to its CPU, and where not, it may be anywhere.
pub(super) fn follow(tid: u32) {
    FOLLOWED.with_borrow_mut(|followed| followed.note(tid));
}

/// Where a thread may run.
#[derive(Debug)]
pub(super) struct Anywhere(Option<CpuSet>);

impl Anywhere {
    /// Where the calling thread may run now.
    pub(super) fn now() -> Anywhere {
        Anywhere(sched_getaffinity(None).ok())
    }

    /// Lets the calling thread run there.
    pub(super) fn apply(&self) {
        if let Some(cpus) = &self.0 {
            let _ = sched_setaffinity(None, cpus);
        }
    }
}

/// Whether the requests come from one thread, so that what takes long keeps nobody else
/// waiting.
pub(super) fn alone() -> bool {
    FOLLOWED.with_borrow(|followed| followed.requests >= FOLLOW_AFTER)
}

/// Whose requests come.
struct Followed {
    tid: u32,
    requests: u32,
    /// Where the thread may run otherwise, while it is bound to one CPU.
    free: Option<CpuSet>,
    cpu: Option<usize>,
    /// When the last FOLLOW_AFTER requests began.
    since: Option<Instant>,
    awake: Awake,
}

impl Followed {
    const NOBODY: Followed =
        Followed { tid: 0, requests: 0, free: None, cpu: None, since: None, awake: Awake::ASLEEP };

    fn note(&mut self, tid: u32) {
        if tid != self.tid {
            self.let_go();
            (self.tid, self.requests, self.since) = (tid, 0, None);
            return;
        }
        self.awake.beat();
        // From ASK_AGAIN back to FOLLOW_AFTER.
        self.requests += 1;
        if self.requests == FOLLOW_AFTER || self.requests == ASK_AGAIN {
            self.requests = FOLLOW_AFTER;
            self.go_to(cpu_of(tid));
        }
        if self.requests.is_multiple_of(FOLLOW_AFTER) {
            let now = Instant::now();
            let fast = self.since.replace(now).is_some_and(|since| now - since < BURST * FOLLOW_AFTER);
            if let (true, Some(cpu), Some(free)) = (fast, self.cpu, &self.free) {
                self.awake.keep(cpu, free);
            }
        }
    }

    fn go_to(&mut self, cpu: Option<usize>) {
        let Some(at) = cpu.filter(|_| cpu != self.cpu) else { return };
        if self.free.is_none() {
            self.free = sched_getaffinity(None).ok();
        }
        let allowed = self.free.as_ref().is_some_and(|free| at < CpuSet::MAX_CPU && free.is_set(at));
        if !allowed {
            return self.let_go();
        }
        let mut one = CpuSet::new();
        one.set(at);
        if sched_setaffinity(None, &one).is_ok() {
            self.cpu = cpu;
        }
    }

    fn let_go(&mut self) {
        if let Some(free) = self.free.take() {
            self.cpu = None;
            let _ = sched_setaffinity(None::<Pid>, &free);
        }
    }
}

/// The CPU on which a thread ran last: proc_pid_stat(5), field 39.
fn cpu_of(tid: u32) -> Option<usize> {
    let mut path = String::with_capacity(32);
    write!(path, "/proc/{tid}/stat").ok()?;
    let mut bytes = [0; 1024];
    let len = File::open(path).ok()?.read_at(&mut bytes, 0).ok()?;
    processor(bytes.get(..len)?)
}

fn processor(stat: &[u8]) -> Option<usize> {
    // The name, field 2, is in parentheses and may hold spaces and parentheses.
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(after + 1..)?).ok()?;
    text.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hide_the_processor() {
        let rest: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let line = format!("7 (a) b) 1 2) {}", rest.join(" "));
        assert_eq!(processor(line.as_bytes()), Some(39));
        assert_eq!(processor(b"7 (a) R 1"), None);
    }

    #[test]
    fn a_loop_follows_one_client_and_is_free_with_several() {
        std::thread::spawn(|| {
            let before = sched_getaffinity(None).expect("ask");
            let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            for _ in 0..=FOLLOW_AFTER {
                follow(tid);
            }
            let bound = sched_getaffinity(None).expect("ask");
            assert_eq!(bound.count(), 1);
            follow(tid + 1);
            assert!(sched_getaffinity(None).expect("ask") == before);
        })
        .join()
        .expect("no panic");
    }
}
