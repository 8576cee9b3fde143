//! What every lease must do, whatever it is: one suite, run on each kind. Waits for
//! events, never for a time to pass.

use std::sync::Arc;

use super::*;
use crate::object::{Faulty, FileStore, MemoryStore, ObjectStore};
use crate::words::SystemClock;

/// Longer than any machine is too busy for.
const PATIENCE: Duration = Duration::from_secs(60);
/// A time to live that no test lives to see the end of.
const LONG: Duration = Duration::from_secs(3600);

fn member(node: u64) -> Member {
    Member { node: NodeId::new(node), hostname: format!("n{node}"), advertise_url: None, proxy_url: None }
}

fn hold(after: u64) -> Want {
    Want::Hold { after: Epoch::new(after) }
}

fn wait(lease: &dyn Lease, mut enough: impl FnMut(&Standing) -> bool) -> Standing {
    let standing = lease.wait(PATIENCE, &mut enough);
    standing.unwrap_or_else(|| panic!("it never came to it, but to {:?}", lease.standing()))
}

fn wait_held(lease: &dyn Lease) -> Epoch {
    wait(lease, |standing| standing.holder.this().is_some()).holder.this().expect("held")
}

/// The suite; `open` opens the lease as the node of this number sees it. Node 1 can
/// hold it, node 2 at most when node 1 does not.
fn run(open: &dyn Fn(u64) -> Arc<dyn Lease>) {
    let (one, two) = (open(1), open(2));
    assert_eq!(one.standing().holder.this(), None, "nothing is held before it is wanted");
    one.want(hold(4));
    let epoch = wait_held(&*one);
    assert!(epoch > Epoch::new(4), "the epoch comes after the archive's");
    assert!(!one.standing().busy);

    two.want(hold(4));
    let standing = wait(&*two, |standing| matches!(standing.holder, Holder::Other { .. }));
    assert!(
        standing.busy
            && matches!(standing.holder, Holder::Other { member, .. } if member.node == NodeId::new(1))
    );
    assert_eq!(wait_held(&*one), epoch, "wanted by another, it stays with its holder");
    assert_eq!(one.wait(Duration::ZERO, &mut |_| false), None);

    two.want(Want::Nothing);
    one.want(Want::Nothing);
    assert_eq!(one.standing().holder.this(), None, "a lease that is not wanted is not held");
    wait(&*one, |standing| !standing.busy);

    one.want(hold(epoch.get()));
    assert!(wait_held(&*one) > epoch, "each term has a later epoch");
}

#[test]
fn the_static_lease_conforms() {
    run(&|node| match node {
        1 => Arc::new(StaticLease::primary()),
        _ => Arc::new(StaticLease::replica(member(1))),
    });
}

fn storage_lease(store: &Arc<dyn ObjectStore>, node: u64, ttl: Duration) -> Arc<dyn Lease> {
    let options = StorageLeaseOptions {
        member: member(node),
        ttl,
        poll: Duration::from_millis(10),
        clock: Arc::new(SystemClock),
    };
    Arc::new(StorageLease::new(Arc::clone(store), options).expect("a lease"))
}

#[test]
fn the_storage_lease_conforms() {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    run(&|node| storage_lease(&store, node, LONG));
    let dir = tempfile::tempdir().expect("temporary directory");
    let store: Arc<dyn ObjectStore> = Arc::new(FileStore::new(dir.path()));
    run(&|node| storage_lease(&store, node, LONG));
}

/// More of the suite, for leases that several nodes can hold.
fn run_shared(open: &dyn Fn(u64) -> Arc<dyn Lease>) {
    // A released lease goes to who wants it without waiting for its time to live.
    let (one, two, three) = (open(1), open(2), open(3));
    one.want(hold(0));
    let first = wait_held(&*one);
    two.want(hold(0));
    wait(&*two, |standing| matches!(standing.holder, Holder::Other { .. }));
    one.want(Want::Nothing);
    let second = wait_held(&*two);
    assert!(second > first);
    // One that is given goes to the node that it is given to.
    one.want(hold(0));
    three.want(hold(0));
    two.want(Want::GiveTo(NodeId::new(3)));
    let third = wait_held(&*three);
    assert!(third > second);
    assert_eq!(one.standing().holder.this(), None);
    // A node that starts again has its lease at once; those that wait see that it lives.
    let three = {
        drop(three);
        open(3)
    };
    three.want(hold(0));
    assert!(wait_held(&*three) > third);
}

#[test]
fn what_nodes_do_to_a_storage_lease_reaches_the_others() {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    run_shared(&|node| storage_lease(&store, node, LONG));
}

/// The agent that scripts/consul.sh has started.
fn consul(key: &str) -> Option<ConsulPlace> {
    let Ok(url) = std::env::var("LITEFS_TEST_CONSUL") else {
        eprintln!("SKIPPED: LITEFS_TEST_CONSUL is not set; scripts/consul.sh sets it");
        return None;
    };
    // Each run has its own keys: a term of an earlier one may go on.
    Some(
        ConsulPlace::new(&url, &format!("litefs-test/{:016x}/{key}", rand::random::<u64>()))
            .expect("a place"),
    )
}

fn consul_lease(place: &ConsulPlace, node: u64) -> Arc<dyn Lease> {
    let options = ConsulLeaseOptions {
        member: member(node),
        place: place.clone(),
        ttl: LONG,
        lock_delay: Duration::from_secs(1),
        clock: Arc::new(SystemClock),
    };
    Arc::new(ConsulLease::new(options).expect("a lease"))
}

#[test]
fn the_consul_lease_conforms() {
    let Some(place) = consul("conforms") else { return };
    run(&|node| consul_lease(&place, node));
    let Some(place) = consul("shared") else { return };
    run_shared(&|node| consul_lease(&place, node));
}

#[test]
fn a_dead_holders_lease_goes_to_another_when_it_has_run_out() {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    let ttl = Duration::from_millis(300);
    let (one, two) = (storage_lease(&store, 1, ttl), storage_lease(&store, 2, ttl));
    one.want(hold(0));
    let epoch = wait_held(&*one);
    two.want(hold(0));
    drop(one);
    assert!(wait_held(&*two) > epoch);
}

#[test]
fn a_holder_cut_off_from_the_storage_steps_down_by_itself_and_says_why() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let store: Arc<dyn ObjectStore> = faulty.clone();
    let lease = storage_lease(&store, 1, Duration::from_secs(1));
    lease.want(hold(0));
    let epoch = wait_held(&*lease);
    faulty.partition(true);
    let standing = wait(&*lease, |standing| standing.holder.this().is_none() && standing.trouble.is_some());
    assert!(standing.busy, "{standing:?}");
    faulty.partition(false);
    assert!(wait_held(&*lease) > epoch);
}

#[test]
fn a_lost_reply_costs_no_lease() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let store: Arc<dyn ObjectStore> = faulty.clone();
    let lease = storage_lease(&store, 1, LONG);
    faulty.lose_next_reply(crate::object::Op::Put, LEASE_KEY);
    lease.want(hold(0));
    assert_eq!(wait_held(&*lease), Epoch::new(1));
}

#[test]
fn who_wants_nothing_asks_nothing_until_told_to_look() {
    let faulty = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
    let store: Arc<dyn ObjectStore> = faulty.clone();
    let (one, two) = (storage_lease(&store, 1, LONG), storage_lease(&store, 2, LONG));
    one.want(hold(0));
    wait_held(&*one);
    faulty.forget_calls();
    assert_eq!(two.standing().holder, Holder::Unknown);
    two.look();
    wait(&*two, |standing| matches!(standing.holder, Holder::Other { .. }));
    assert_eq!(faulty.calls().len(), 1);
}
