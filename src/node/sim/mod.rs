//! The cluster in a simulated world: nodes that start, stop, die, freeze between any two
//! requests (between the lease's check and the put that relies on it, too), give the
//! lease away, lose their disks; a store that is out of reach, loses replies, and
//! carries puts out that were given up; clocks that differ. Lease, writer, upkeep and
//! alignment are the real ones, the database is a list of numbers.
//!
//! In every world: one node at a time holds the lease; epochs grow; the chain is
//! whole; what the archive has acknowledged is in it; and everything that was ever
//! committed is in the chain, in a branch that is parked, on a disk that waits for its
//! turn, or was on a disk that was lost before the archive had it.

mod cost;
mod list;
mod node;
mod world;

use std::sync::Arc;
use std::time::Duration;

use list::Pages;
use node::{Node, database};
use world::World;

use crate::archive::{Archive, Options, Severity, Target};
use crate::object::ObjectStore;

/// Steps with faults, and at most so many until there is rest.
const STEPS: usize = 120;
const REST: usize = 600;

fn with_node<T>(world: &World, at: usize, act: impl FnOnce(&mut Node) -> T) -> Option<T> {
    let mut slot = world.slots[at].node.lock();
    slot.as_mut().map(act)
}

/// Nodes of equal rights, to which anything may happen.
fn anything(seed: u64) -> usize {
    let world = World::new(seed, 3);
    for _ in 0..STEPS {
        world.pass(Duration::from_millis(world.draw(700)));
        let at = world.draw(3) as usize;
        if world.chance(12) {
            let other = with_node(&world, (at + 1) % 3, |node| node.id);
            let (what, span) = (world.draw(10), Duration::from_millis(world.draw(30_000)));
            with_node(&world, at, |node| match (what, other) {
                (0, _) => node.die(&world, at),
                (1, _) => node.stop(&world, at),
                (2, Some(other)) => node.hand_over(other),
                (3, _) => node.wipe(&world),
                (4, _) => world.freeze(at, span),
                _ => node.start(&world, at),
            });
        }
        world.step(at);
    }
    rest_and_check(&world)
}

/// One machine with data, and a second with an empty disk that starts while the first
/// redeploys; each wants the lease as soon as it stands at the head, and asks for it
/// where the other has it.
fn redeploy(seed: u64) -> usize {
    let world = World::new(seed, 2);
    with_node(&world, 0, |node| node.start(&world, 0));
    let (up, redeploys) = (world.draw(30), world.draw(80));
    for step in 0..STEPS as u64 {
        world.pass(Duration::from_millis(world.draw(700)));
        if step == up {
            with_node(&world, 1, |node| node.start(&world, 1));
        }
        if step >= redeploys {
            let other = with_node(&world, 1, |node| node.id);
            with_node(&world, 0, |node| match (world.draw(8), other) {
                (0, _) => node.stop(&world, 0),
                (1, _) => node.die(&world, 0),
                (2, Some(other)) => node.hand_over(other),
                (3..6, _) => node.start(&world, 0),
                _ => {}
            });
        }
        world.step(world.draw(2) as usize);
    }
    rest_and_check(&world)
}

/// Without faults the world comes to rest, and everything is where it should be. Returns
/// how many terms there were.
fn rest_and_check(world: &Arc<World>) -> usize {
    world.calm_down();
    let nodes = world.slots.len();
    for at in 0..nodes {
        world.freeze(at, Duration::ZERO);
        with_node(world, at, |node| node.start(world, at));
    }
    let is_done =
        |at| with_node(world, at, |node| node.is_primary() && node.has_published()).unwrap_or(false);
    let mut rest = 0;
    while !(0..nodes).any(is_done) {
        world.pass(Duration::from_millis(500));
        // Who was asked to stop has stopped by now.
        with_node(world, rest % nodes, |node| node.start(world, rest % nodes));
        world.step(rest % nodes);
        rest += 1;
        assert!(rest < REST, "seed {}: the world does not come to rest", world.seed);
    }
    check(world)
}

fn check(world: &World) -> usize {
    let seed = world.seed;
    let raw = Arc::clone(&world.raw) as Arc<dyn ObjectStore>;
    let archive = Archive::open(raw, Options { parallel: 1, ..Options::default() }).expect("an archive");
    let head = archive.head().expect("one chain");
    for pair in head.tail().windows(2) {
        let (a, b) = (pair[0].segment.head, pair[1].segment.head);
        assert!(a.epoch < b.epoch || a.epoch == b.epoch && !b.seal, "seed {seed}: {a:?}, then {b:?}");
    }
    let findings = archive.verify(None, true).expect("readable");
    let damage = findings.iter().find(|finding| finding.severity == Severity::Damage);
    assert_eq!(damage, None, "seed {seed}");
    let facts = world.facts.lock();
    let mut chain = Vec::new();
    if head.standing(&database()).is_some() {
        let plan = archive.plan(&head, &database(), Target::Latest).expect("a plan");
        let pages = Pages::default();
        archive.restore(&plan, &pages, &()).expect("restored");
        chain = pages.list(plan.pos).numbers;
    }
    let lost = facts.archived.iter().find(|number| !chain.contains(number));
    assert_eq!(lost, None, "seed {seed}: the archive had acknowledged it");
    let mut known = chain;
    known.extend(facts.parked.iter().chain(&facts.wiped));
    for at in 0..world.slots.len() {
        known.extend(with_node(world, at, |node| node.numbers().to_vec()).unwrap_or_default());
    }
    let lost = facts.committed.iter().find(|number| !known.contains(number));
    assert_eq!(lost, None, "seed {seed}: it was committed");
    facts.seals.len()
}

/// Runs `worlds` with seeds from LITEFS_SEED, else from 1, on; returns the sum of what
/// they return.
fn worlds(count: u64, world: fn(u64) -> usize) -> usize {
    let seed = std::env::var("LITEFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = seed.unwrap_or(1);
    println!("LITEFS_SEED={first}");
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                let seeds = (first + part..first + count).step_by(threads as usize);
                scope.spawn(move || seeds.map(world).sum::<usize>())
            })
            .collect();
        parts.into_iter().map(|part| part.join().expect("a bad world; its seed is above")).sum()
    })
}

#[test]
fn in_ten_thousand_bad_worlds_the_chain_has_what_was_acknowledged() {
    let terms = worlds(10_000, anything);
    println!("{terms} terms");
    assert!(terms > 10_000 * 2, "only {terms} terms: the worlds are too quiet to show anything");
}

#[test]
fn in_a_thousand_redeployments_the_empty_node_never_wins_before_it_has_restored() {
    let terms = worlds(1_000, redeploy);
    println!("{terms} terms");
    assert!(terms > 1_000 * 2, "only {terms} terms: the worlds are too quiet to show anything");
}
