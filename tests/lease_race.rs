//! Two candidates that want the lease at the same moment, again and again: one of them
//! has it, the other sees that, and no epoch comes twice. On a directory, and on MinIO and
//! Consul where scripts/test has started them.
//!
//! LITEFS_RACES=n for so many races on each of them.

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use litefs::lease::{
    ConsulLease, ConsulLeaseOptions, ConsulPlace, Holder, Lease, Member, Standing, StorageLease,
    StorageLeaseOptions, Want,
};
use litefs::object::{FileStore, ObjectStore, S3Store};
use litefs::words::{Epoch, NodeId, SystemClock};
use support::{Outside, PATIENCE, Scratch};

/// A term that no race lives to see the end of.
const TTL: Duration = Duration::from_secs(3600);

fn races(usual: u32) -> u32 {
    std::env::var("LITEFS_RACES").ok().and_then(|races| races.parse().ok()).unwrap_or(usual)
}

fn member(node: u64) -> Member {
    Member { node: NodeId::new(node), hostname: format!("n{node}"), advertise_url: None, proxy_url: None }
}

fn in_storage(store: Arc<dyn ObjectStore>, node: u64) -> Box<dyn Lease> {
    let poll = Duration::from_millis(1);
    let options = StorageLeaseOptions { member: member(node), ttl: TTL, poll, clock: Arc::new(SystemClock) };
    Box::new(StorageLease::new(store, options).expect("a lease"))
}

/// Where each waits for the other: a barrier that does not wait for one that failed.
#[derive(Default)]
struct Line(Mutex<u32>, Condvar);

impl Line {
    fn wait(&self) {
        let mut came = self.0.lock().expect("no panic");
        *came += 1;
        self.1.notify_all();
        let both = came.next_multiple_of(2);
        let (_came, waited) =
            self.1.wait_timeout_while(came, PATIENCE, |came| *came < both).expect("no panic");
        assert!(!waited.timed_out(), "the other one does not come");
    }
}

/// What the candidates share.
struct Course {
    rest: Line,
    start: Line,
    finish: Line,
    /// The last epoch that was held.
    last: Mutex<Epoch>,
    wins: AtomicU32,
}

/// Runs all races as one of the candidates; how many it won.
fn run(lease: &dyn Lease, course: &Course, races: u32) -> u32 {
    let mut won = 0;
    for race in 0..races {
        course.rest.wait();
        // Both know that it is free: neither has to find out first.
        lease.look();
        let mut free = |standing: &Standing| standing.holder == Holder::Nobody;
        lease.wait(PATIENCE, &mut free).expect("it is free");
        course.start.wait();
        let last = *course.last.lock().expect("no panic");
        lease.want(Want::Hold { after: Epoch::default() });
        let decided = |holder: &Holder| match holder {
            Holder::This { .. } => true,
            Holder::Other { epoch, .. } => *epoch > last,
            Holder::Nobody | Holder::Unknown => false,
        };
        let standing = lease.wait(PATIENCE, &mut |standing| decided(&standing.holder));
        let standing = standing.unwrap_or_else(|| panic!("race {race}: nobody wins, {:?}", lease.standing()));
        let held = standing.holder.this();
        if let Some(epoch) = held {
            assert_eq!(course.wins.fetch_add(1, Ordering::AcqRel), race, "two winners of one race");
            assert!(epoch > last, "epoch {epoch} after {last}");
            won += 1;
        }
        course.finish.wait();
        assert_eq!(course.wins.load(Ordering::Acquire), race + 1, "one winner");
        assert_eq!(lease.standing().holder.this(), held, "what is held stays, what is not does not come");
        if let Some(epoch) = held {
            *course.last.lock().expect("no panic") = epoch;
        }
        lease.want(Want::Nothing);
        lease.wait(PATIENCE, &mut |standing| !standing.busy).expect("it is let go");
    }
    won
}

fn race(what: &str, open: &(dyn Fn(u64) -> Box<dyn Lease> + Sync), races: u32) {
    let course = Course {
        rest: Line::default(),
        start: Line::default(),
        finish: Line::default(),
        last: Mutex::new(Epoch::default()),
        wins: AtomicU32::new(0),
    };
    let candidate = |node: u64| {
        let (open, course) = (open, &course);
        move || {
            let lease = open(node);
            run(&*lease, course, races)
        }
    };
    let won = std::thread::scope(|scope| {
        let both = [scope.spawn(candidate(1)), scope.spawn(candidate(2))];
        both.map(|thread| thread.join().expect("a candidate"))
    });
    println!("{what}: {races} races, won {} and {}", won[0], won[1]);
    assert_eq!(won[0] + won[1], races);
}

#[test]
fn of_two_candidates_for_a_lease_in_a_directory_one_wins_a_thousand_times() {
    let scratch = Scratch::new("race");
    race("a directory", &|node| in_storage(Arc::new(FileStore::new(scratch.path())), node), races(1000));
}

#[test]
fn of_two_candidates_for_a_lease_on_s3_one_wins_every_time() {
    let Some(minio) = Outside::minio() else { return };
    let place = minio.place(&format!("race-{:016x}", rand::random::<u64>()));
    let store = || S3Store::for_lease(place.clone(), Duration::from_secs(10)).expect("a store");
    race("MinIO", &|node| in_storage(Arc::new(store()), node), races(60));
}

#[test]
fn of_two_candidates_for_a_lease_in_consul_one_wins_every_time() {
    let Ok(agent) = std::env::var("LITEFS_TEST_CONSUL") else {
        eprintln!("SKIPPED: LITEFS_TEST_CONSUL is not set; scripts/consul.sh sets it");
        return;
    };
    let key = format!("litefs-race/{:016x}", rand::random::<u64>());
    let place = ConsulPlace::new(&agent, &key).expect("a place");
    let open = |node: u64| -> Box<dyn Lease> {
        let (lock_delay, clock) = (Duration::from_secs(1), Arc::new(SystemClock));
        let options =
            ConsulLeaseOptions { member: member(node), place: place.clone(), ttl: TTL, lock_delay, clock };
        Box::new(ConsulLease::new(options).expect("a lease"))
    };
    race("Consul", &open, races(40));
}
