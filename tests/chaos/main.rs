//! Three nodes, one archive, a bank: money is moved among the accounts of several
//! databases, in the mounts and through any node's proxy, while nodes are killed, frozen,
//! stopped, cut off, promoted, robbed of their disks. Afterwards no money was made or
//! lost, all nodes have the same bytes, and every transfer that was acknowledged is there,
//! or parked; with durability = "archive" it is there. Real processes, real mounts.
//!
//! LITEFS_CHAOS_SECONDS=n for longer runs, LITEFS_SEED=n for the same faults again.
#![allow(missing_docs)]

mod bank;
mod cluster;
#[path = "../cluster/network.rs"]
mod network;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bank::{Acknowledged, BANKS, Desk};
use cluster::{Cluster, Kind, LeaseIn, Storage};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use support::can_mount;
use support::scratch::Scratch;

/// Some write in the mount of the primary, most through proxies.
const WRITERS: u64 = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Lets things happen to a cluster of this kind for so many seconds.
fn chaos(kind: Kind, seconds: u64) {
    assert!(can_mount(), "this test needs /dev/fuse and root");
    let seed = number("LITEFS_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(number("LITEFS_CHAOS_SECONDS").unwrap_or(seconds));
    println!("{kind:?}, LITEFS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let scratch = Scratch::new("chaos");
    let Some(mut cluster) = Cluster::new(kind, &scratch) else { return };
    cluster.start(0);
    cluster.nodes[0].wait_primary().expect("the first node is the primary");
    bank::open(&cluster.nodes[0]);
    cluster.nodes[0].wait_archived(&BANKS.map(|(bank, _)| bank));
    // The third one comes when it comes.
    cluster.start(1);
    let cluster = Mutex::new(cluster);
    let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut said = Vec::new();
    let acknowledged = std::thread::scope(|scope| {
        let writer = |number: u64| {
            let desk = Desk { cluster: &cluster, next: &next, stop: &stop };
            move || {
                let mut random = StdRng::seed_from_u64(seed ^ number);
                match number {
                    0 => bank::in_the_mount(&desk, &mut random),
                    _ => bank::through_proxies(&desk, &mut random),
                }
            }
        };
        let writers: Vec<_> = (0..WRITERS).map(|number| scope.spawn(writer(number))).collect();
        let begin = Instant::now();
        while begin.elapsed() < time {
            let pause = Duration::from_millis(random.random_range(50..1500));
            std::thread::park_timeout(pause);
            said.push(cluster.lock().expect("the cluster").disturb(&mut random));
        }
        {
            // A frozen node's mount would keep the writers.
            let mut cluster = cluster.lock().expect("the cluster");
            (0..3).for_each(|at| cluster.thaw(at));
        }
        stop.store(true, Ordering::Release);
        let mut all = Acknowledged::new();
        for writer in writers {
            for (bank, numbers) in writer.join().expect("a writer") {
                all.entry(bank).or_default().extend(numbers);
            }
        }
        all
    });
    println!("{said:?}");
    let mut cluster = cluster.into_inner().expect("the cluster");
    cluster.heal();
    bank::check(&cluster.nodes, &scratch, &acknowledged, kind.archived);
    for node in &mut cluster.nodes {
        // Its application may not have begun to listen for signals.
        node.stop_whatever();
    }
}

/// What the runs have in common.
const KIND: Kind =
    Kind { storage: Storage::Directory, lease: LeaseIn::Storage, archived: false, sync_interval: "20ms" };

#[test]
fn money_is_neither_made_nor_lost_whatever_happens_to_the_nodes() {
    chaos(KIND, 15);
}

#[test]
fn nothing_acknowledged_is_lost_where_commits_wait_for_s3() {
    chaos(Kind { storage: Storage::Minio, archived: true, ..KIND }, 15);
}

#[test]
fn money_is_neither_made_nor_lost_with_s3_and_consul() {
    chaos(Kind { storage: Storage::Minio, lease: LeaseIn::Consul, ..KIND }, 25);
}

#[test]
fn money_is_neither_made_nor_lost_with_a_directory_and_consul() {
    chaos(Kind { lease: LeaseIn::Consul, sync_interval: "2s", ..KIND }, 12);
}
