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

/// In so short a time each they wait for no disk. So many are looked at together.
const SWIFT: Duration = Duration::from_micros(100);
const LAP: u32 = 256;

/// Who waited for the CPU so long for each of them waited for others than its client.
const KEPT_WAITING: Duration = Duration::from_micros(20);

/// Who gave way and was kept waiting gives way again after so many laps.
const PATIENCE: u32 = 16;

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
    if !schedule(libc::SCHED_FIFO, 1) {
        // Linux takes 0 for the calling thread, not the process. Not allowed without
        // CAP_SYS_NICE either, and good enough without.
        let _ = rustix::process::setpriority_process(None, -20);
    }
}

/// Sets how the calling thread is scheduled; false if that is not allowed.
fn schedule(policy: libc::c_int, priority: libc::c_int) -> bool {
    let priority = libc::sched_param { sched_priority: priority };
    // SAFETY: the call reads `priority`, which lives until it returns; 0 is the calling
    // thread.
    unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const priority) == 0 }
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
    /// When the last lap began.
    lap: Option<Instant>,
    gives_way: bool,
    /// How long the thread had waited for a CPU when the last lap began.
    waited: Option<Duration>,
    /// So many laps it does not give way.
    patience: u32,
    awake: Awake,
}

impl Followed {
    const NOBODY: Followed = Followed {
        tid: 0,
        requests: 0,
        free: None,
        cpu: None,
        since: None,
        lap: None,
        gives_way: false,
        waited: None,
        patience: 0,
        awake: Awake::ASLEEP,
    };

    fn note(&mut self, tid: u32) {
        if tid != self.tid {
            self.let_go();
            (self.tid, self.requests, self.since, self.lap) = (tid, 0, None, None);
            return;
        }
        self.awake.beat();
        self.requests += 1;
        if self.requests == FOLLOW_AFTER || self.requests == ASK_AGAIN {
            self.go_to(cpu_of(tid));
        }
        if self.requests.is_multiple_of(FOLLOW_AFTER)
            && within(&mut self.since, BURST * FOLLOW_AFTER)
            && let (Some(cpu), Some(free)) = (self.cpu, &self.free)
        {
            self.awake.keep(cpu, free);
        }
        if self.requests.is_multiple_of(LAP) {
            let swift = within(&mut self.lap, SWIFT * LAP) && self.cpu.is_some();
            // Taken whatever else is so: it counts from lap to lap.
            let waited = self.waited_for_cpu();
            self.judge(swift && waited < KEPT_WAITING * LAP);
        }
        if self.requests == ASK_AGAIN {
            self.requests = LAP;
        }
    }

    /// How long the calling thread was ready to run since the last call and had no CPU.
    fn waited_for_cpu(&mut self) -> Duration {
        let now = run_delay();
        let before = std::mem::replace(&mut self.waited, now);
        now.zip(before).map_or(Duration::ZERO, |(now, before)| now.saturating_sub(before))
    }

    /// After a lap.
    fn judge(&mut self, swift: bool) {
        if self.gives_way && !swift {
            self.patience = PATIENCE;
        } else {
            self.patience = self.patience.saturating_sub(1);
        }
        self.give_way(swift && self.patience == 0);
    }

    /// Whether the calling thread lets its client go on until that waits for it
    /// (SCHED_BATCH): a RELEASE or FORGET, for which nobody waits, is then done with the
    /// request that follows, where SCHED_FIFO would interrupt the client for each.
    fn give_way(&mut self, yes: bool) {
        if std::mem::replace(&mut self.gives_way, yes) == yes {
            return;
        }
        // Back to what was allowed before.
        let _ = if yes {
            schedule(libc::SCHED_BATCH, 0)
        } else {
            schedule(libc::SCHED_FIFO, 1) || schedule(libc::SCHED_OTHER, 0)
        };
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
        self.give_way(false);
        if let Some(free) = self.free.take() {
            self.cpu = None;
            let _ = sched_setaffinity(None::<Pid>, &free);
        }
    }
}

/// Whether so much time or less has gone by since `then`, which becomes now.
fn within(then: &mut Option<Instant>, time: Duration) -> bool {
    let now = Instant::now();
    then.replace(now).is_some_and(|then| now - then < time)
}

/// How long the calling thread has been ready to run and had no CPU: the second field of
/// /proc/thread-self/schedstat (sched-stats.rst of the kernel); `None` where there is none.
fn run_delay() -> Option<Duration> {
    let mut bytes = [0; 64];
    let len = File::open("/proc/thread-self/schedstat").ok()?.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..len)?).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
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

    fn policy() -> libc::c_int {
        // SAFETY: the call takes no pointers; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) & !libc::SCHED_RESET_ON_FORK }
    }

    #[test]
    fn the_time_without_a_cpu_is_read_where_the_kernel_counts_it() {
        assert_eq!(run_delay().is_some(), std::path::Path::new("/proc/thread-self/schedstat").exists());
    }

    #[test]
    fn a_loop_gives_way_while_requests_are_swift_and_is_patient_after_it_was_kept_waiting() {
        std::thread::spawn(|| {
            let mut followed = Followed::NOBODY;
            followed.judge(true);
            assert_eq!(policy(), libc::SCHED_BATCH);
            followed.judge(false);
            assert_ne!(policy(), libc::SCHED_BATCH);
            for _ in 1..PATIENCE {
                followed.judge(true);
                assert!(!followed.gives_way);
            }
            followed.judge(true);
            assert_eq!(policy(), libc::SCHED_BATCH);
            followed.let_go();
            assert_ne!(policy(), libc::SCHED_BATCH, "others are there");
        })
        .join()
        .expect("no panic");
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
