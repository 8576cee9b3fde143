//! What a day costs: the writer, its upkeep and the lease on a clock that is moved, over
//! a store that counts. The pace of the puts is the publisher's: the first after a pause
//! at once, then one an interval. Must not compute what it can count.

use std::sync::Arc;
use std::time::Duration;

use super::list::List;
use super::node::database;
use crate::archive::{Archive, ChangeSet, Occasion, Options, Writer};
use crate::lease::{Member, SteppedLease, Want};
use crate::object::{Counted, MemoryStore, ObjectStore, OpTotals, Totals};
use crate::words::{Clock as _, DbName, Epoch, ManualClock, NodeId, Timestamp};

const S: Duration = Duration::from_secs(1);
const HOUR: u32 = 3600;
/// What is simulated of a day, in hours; LITEFS_COST_HOURS=24 for all of it.
const HOURS: u32 = 1;

/// Amazon S3, us-east-1, dollars for 1000 requests (2026-11): PUT and LIST; GET.
const WRITE_PRICE: f64 = 0.005;
const READ_PRICE: f64 = 0.0004;

struct Bed {
    clock: Arc<ManualClock>,
    store: Arc<Counted>,
    epoch: u64,
}

/// A node that is up.
struct Up {
    lease: Option<SteppedLease>,
    writer: Writer,
    last_put: Option<Duration>,
    waiting: Vec<ChangeSet>,
}

impl Bed {
    fn new() -> Bed {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_800_000_000_000)));
        Bed { clock, store: Arc::new(Counted::new(Arc::new(MemoryStore::new()))), epoch: 0 }
    }

    fn start(&mut self, with_lease: bool) -> Up {
        self.epoch += 1;
        let store = Arc::clone(&self.store) as Arc<dyn ObjectStore>;
        let lease = with_lease.then(|| {
            let lease = self.lease(Arc::clone(&store), 1, self.epoch);
            lease.want(Want::Hold { after: Epoch::new(self.epoch - 1) });
            while lease.standing().busy {
                lease.step();
                self.clock.advance(Duration::from_millis(10));
            }
            lease
        });
        let options = Options { clock: Arc::clone(&self.clock) as _, parallel: 1, ..Options::default() };
        let archive = Archive::open_or_init(store, options).expect("an archive");
        let writer = Writer::seal(&archive, Epoch::new(self.epoch), NodeId::new(1)).expect("a writer");
        Up { lease, writer, last_put: None, waiting: Vec::new() }
    }

    /// The lease as a node reaches it, of ten seconds, looked at as often as nodes do.
    fn lease(&self, store: Arc<dyn ObjectStore>, node: u64, seed: u64) -> SteppedLease {
        let member = Member {
            node: NodeId::new(node),
            hostname: "n".to_owned(),
            advertise_url: None,
            proxy_url: None,
        };
        SteppedLease::new(store, Arc::clone(&self.clock) as _, member, (S * 10, S / 2), seed)
    }

    /// A quarter of a second.
    fn tick(&self, up: &mut Up) {
        self.clock.advance(S / 4);
        if let Some(lease) = &up.lease {
            lease.step();
        }
        let now = self.clock.elapsed();
        let due = up.last_put.is_none_or(|last| now >= last + S);
        if !up.waiting.is_empty() && due {
            up.writer.put(&up.waiting).expect("put");
            up.waiting.clear();
            up.last_put = Some(now);
            up.writer.upkeep(Occasion::Running, &()).expect("upkeep");
        }
    }

    fn stop(&self, mut up: Up) {
        if !up.waiting.is_empty() {
            up.writer.put(&std::mem::take(&mut up.waiting)).expect("put");
        }
        up.writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
        if let Some(lease) = up.lease {
            lease.want(Want::Nothing);
            lease.step();
        }
    }
}

fn hours() -> u32 {
    std::env::var("LITEFS_COST_HOURS").ok().and_then(|text| text.parse().ok()).unwrap_or(HOURS)
}

/// What was counted, for a day.
fn a_day(what: &str, totals: Totals) -> f64 {
    let days = f64::from(hours()) / 24.0;
    let puts = (totals.put.calls + totals.put_file.calls) as f64 / days;
    let lists = totals.list.calls as f64 / days;
    let gets = (totals.get.calls + totals.get_range.calls + totals.head.calls) as f64 / days;
    let deletes = totals.delete.calls as f64 / days;
    let dollars = ((puts + lists) * WRITE_PRICE + gets * READ_PRICE) / 1000.0 * 30.0;
    let megabytes = totals.bytes_written() as f64 / days / 1e6;
    println!(
        "| {what} | {puts:.0} | {gets:.0} | {lists:.0} | {deletes:.0} | {megabytes:.1} MB | ${dollars:.2} |"
    );
    dollars
}

fn less(after: Totals, before: Totals) -> Totals {
    let op = |after: OpTotals, before: OpTotals| OpTotals {
        calls: after.calls - before.calls,
        errors: after.errors - before.errors,
        bytes: after.bytes - before.bytes,
    };
    Totals {
        get: op(after.get, before.get),
        get_range: op(after.get_range, before.get_range),
        head: op(after.head, before.head),
        put: op(after.put, before.put),
        put_file: op(after.put_file, before.put_file),
        delete: op(after.delete, before.delete),
        list: op(after.list, before.list),
    }
}

/// Runs the hours second by second after a start; `writes` says how many transactions each database
/// commits in a second.
fn run(lease: bool, databases: usize, writes: impl Fn(u32, usize) -> u32) -> Totals {
    let mut bed = Bed::new();
    let mut up = bed.start(lease);
    let started = bed.store.totals();
    let mut lists: Vec<List> = vec![List::default(); databases];
    let names: Vec<DbName> =
        (0..databases).map(|n| DbName::new(&format!("{n}.db")).expect("a name")).collect();
    for second in 0..hours() * HOUR {
        for (n, list) in lists.iter_mut().enumerate() {
            for _ in 0..writes(second, n) {
                up.waiting.push(list.push(&names[n], u64::from(second) + 1, bed.clock.now()));
            }
        }
        for _ in 0..4 {
            bed.tick(&mut up);
        }
    }
    less(bed.store.totals(), started)
}

#[test]
fn what_a_day_costs() {
    println!("| node | PUT | GET | LIST | DELETE | written | a month on AWS |");
    let idle = a_day("idle, storage lease of 10 s", run(true, 1, |_, _| 0));
    assert!((3.0..4.5).contains(&idle), "an idle node renews its lease, and that is all");
    let idle = a_day("idle, static lease", run(false, 1, |_, _| 0));
    assert!(idle == 0.0, "with a static lease an idle node asks for nothing");
    let waiting = standby();
    assert_eq!(waiting.put.calls, 0);
    a_day("another that waits for that lease", waiting);
    // Twenty-five writes in five seconds, at the hour and at half past.
    let bursts = |second: u32, _| if second % 1800 < 5 { 5 } else { 0 };
    a_day("50 writes an hour in two bursts, storage lease", run(true, 1, bursts));
    a_day("50 writes an hour in two bursts, static lease", run(false, 1, bursts));
    a_day("50 writes an hour, started for each burst and stopped after it", sessions());
    let steady = a_day("1 write/s, static lease", run(false, 1, |_, _| 1));
    let hundred = |second: u32, n: usize| u32::from(second as usize % 60 == n * 60 / 100);
    let many = a_day("100 databases at 1 write/min, static lease", run(false, 100, hundred));
    assert!(many < steady * 2.5, "one put a tick for any number of databases, and upkeep for each");
}

/// A second node, which waits for the lease of an idle one.
fn standby() -> Totals {
    const STEP: Duration = Duration::from_millis(50);
    let mut bed = Bed::new();
    let holder = bed.start(true).lease.expect("a lease");
    let counted = Arc::new(Counted::new(Arc::clone(&bed.store) as Arc<dyn ObjectStore>));
    let lease = bed.lease(Arc::clone(&counted) as _, 2, 2);
    lease.want(Want::Hold { after: Epoch::new(1) });
    for _ in 0..S.as_millis() / STEP.as_millis() * u128::from(hours() * HOUR) {
        bed.clock.advance(STEP);
        holder.step();
        lease.step();
    }
    assert!(lease.standing().busy, "the first one still has it");
    counted.totals()
}

/// A machine that is up for a minute twice an hour.
fn sessions() -> Totals {
    let mut bed = Bed::new();
    let mut list = List::default();
    for _ in 0..hours() * 2 {
        let mut up = bed.start(true);
        for second in 0..60_u64 {
            for number in 0..5 * u64::from(second < 5) {
                up.waiting.push(list.push(&database(), second * 5 + number + 1, bed.clock.now()));
            }
            for _ in 0..4 {
                bed.tick(&mut up);
            }
        }
        bed.stop(up);
        bed.clock.advance(S * 1740);
    }
    bed.store.totals()
}
