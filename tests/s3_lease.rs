//! The storage lease on S3, with everything that S3 does to it: lost replies, bursts
//! of refusals, conflicts, silence. One node at a time holds it, in growing epochs.

#[path = "support/s3_server/mod.rs"]
mod s3_server;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use litefs::lease::{Holder, Lease, Member, StorageLease, StorageLeaseOptions, Want};
use litefs::object::S3Store;
use litefs::words::{Clock, Epoch, NodeId, SystemClock};
use s3_server::{S3Server, Trouble};

const TTL: Duration = Duration::from_millis(1200);
const PATIENCE: Duration = Duration::from_secs(60);

fn lease(server: &S3Server, node: u64) -> StorageLease {
    let store = S3Store::for_lease(server.place("p"), TTL).expect("a store");
    let options = StorageLeaseOptions {
        member: Member {
            node: NodeId::new(node),
            hostname: format!("n{node}"),
            advertise_url: None,
            proxy_url: None,
        },
        ttl: TTL,
        poll: TTL / 15,
        clock: Arc::new(SystemClock),
    };
    StorageLease::new(Arc::new(store), options).expect("a lease")
}

/// A term as its holder believed in it, by the one clock that all nodes here share.
#[derive(Clone, Copy, Debug)]
struct Term {
    epoch: Epoch,
    from: Duration,
    until: Duration,
}

/// Competes for the lease, and gives it up now and then, until told to stop.
fn compete(server: &S3Server, node: u64, stop: &AtomicBool, terms: &Mutex<Vec<Term>>) {
    let mut random = node;
    let mut current: Option<Term> = None;
    let mut lease = lease(server, node);
    let hold = Want::Hold { after: Epoch::default() };
    lease.want(hold);
    while !stop.load(Ordering::Relaxed) {
        let held = current.map(|term| term.epoch);
        let mut renewed = current.map(|term| term.until);
        let mut changed = |holder: &Holder| match holder {
            Holder::This { epoch, until } => Some(*epoch) != held || Some(*until) != renewed.replace(*until),
            _ => held.is_some(),
        };
        lease.wait(Duration::from_millis(50), &mut |standing| changed(&standing.holder));
        let standing = lease.standing();
        // The clock after it: a busy machine must not make a term look longer than it was.
        let now = SystemClock.elapsed();
        match (standing.holder, &mut current) {
            (Holder::This { epoch, until }, Some(term)) if term.epoch == epoch => term.until = until,
            (Holder::This { epoch, until }, term) => {
                let ended = term.replace(Term { epoch, from: now, until });
                terms.lock().expect("terms").extend(ended);
            }
            (_, term) => terms.lock().expect("terms").extend(term.take()),
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if current.is_some() && (random >> 33).is_multiple_of(40) {
            let ended =
                current.take().map(|term| Term { until: term.until.min(SystemClock.elapsed()), ..term });
            match (random >> 40) % 3 {
                0 => lease.want(Want::Nothing),
                1 => lease.want(Want::GiveTo(NodeId::new(node % 3 + 1))),
                // It dies; the next one under this id is a new run.
                _ => lease = self::lease(server, node),
            }
            let ended = ended.map(|term| Term { until: term.until.min(SystemClock.elapsed()), ..term });
            terms.lock().expect("terms").extend(ended);
            lease.wait(TTL / 4, &mut |standing| !standing.busy);
            lease.want(hold);
        }
    }
    terms.lock().expect("terms").extend(current);
}

#[test]
fn whatever_s3_does_one_node_at_a_time_holds_the_lease() {
    let server = S3Server::start();
    let (stop, terms) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for node in 1..=3 {
            let (server, stop, terms) = (&server, &stop, &terms);
            scope.spawn(move || compete(server, node, stop, terms));
        }
        let begin = Instant::now();
        let troubles =
            [Trouble::DoThenFail, Trouble::DoThenHang, Trouble::Refuse, Trouble::Conflict, Trouble::Hang];
        // Some seconds of trouble, and on until something has happened.
        for trouble in troubles.into_iter().cycle() {
            let enough = begin.elapsed() > Duration::from_secs(8) && terms.lock().expect("terms").len() >= 5;
            if enough || begin.elapsed() > PATIENCE * 2 {
                break;
            }
            server.trouble("PutObject", "lease.json", 1, trouble);
            server.trouble("GetObject", "lease.json", 1, trouble);
            // The pace of the trouble, not something waited for.
            std::thread::park_timeout(Duration::from_millis(170));
            server.heal();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut terms = terms.into_inner().expect("terms");
    terms.sort_by_key(|term| term.epoch);
    assert!(terms.len() >= 5, "{terms:?}");
    for pair in terms.windows(2) {
        assert!(pair[0].until <= pair[1].from, "two holders at once: {pair:?}");
        assert!(pair[0].epoch != pair[1].epoch, "two terms of one epoch: {pair:?}");
    }
}

#[test]
fn a_holder_renews_and_nobody_else_asks_for_anything() {
    let server = S3Server::start();
    let (holder, idle) = (lease(&server, 1), lease(&server, 2));
    holder.want(Want::Hold { after: Epoch::default() });
    let mut until = Vec::new();
    holder
        .wait(PATIENCE, &mut |standing| {
            if let Holder::This { until: end, .. } = standing.holder
                && until.last() != Some(&end)
            {
                until.push(end);
            }
            until.len() >= 4
        })
        .expect("three renewals");
    let requests = server.take_requests();
    let puts = requests.iter().filter(|request| request.starts_with("PutObject")).count();
    assert!(puts >= 4, "{requests:?}");
    assert_eq!(idle.standing().holder, Holder::Unknown);
}
