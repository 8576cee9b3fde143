//! The daemon and its applications die at every step, one step after the other: the
//! directory as it is then is opened again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litefs::db::FileKind;
use litefs::words::{DbName, Faults, Pos};

use super::check::{Chains, at_rest};
use super::workload::{Random, Setup, number, rolled_back, seed_offset, transaction};
use super::world::{BOOT, World, copy_dir, scratch};

/// What the application knows to be committed, and what was told to listeners.
#[derive(Default)]
struct Known {
    acknowledged: AtomicU64,
    told: Mutex<Vec<Pos>>,
    points: AtomicU64,
}

fn file_number(world: &World) -> u64 {
    let name = DbName::new("a.db").expect("a name");
    let Some(database) = world.store.database(&name) else { return 0 };
    let path = database.path(FileKind::Database);
    if std::fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
        return 0;
    }
    number(&at_rest(&path)).expect("read")
}

/// What must be true of the directory as it is now, if everybody dies.
fn dies_here(world: &World, step: &str, known: &Known, setup: Setup) {
    let point = known.points.fetch_add(1, Ordering::Relaxed);
    let acknowledged = known.acknowledged.load(Ordering::Acquire);
    let what = format!("{setup:?}: killed at point {point} ({step}), {acknowledged} acknowledged");
    let dir = scratch();
    world.snapshot(dir.path());
    let again = World::try_open(dir.path(), BOOT).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut chains = Chains::default();
    chains.check_opened(&again.store, &what);
    let found = file_number(&again);
    assert!((acknowledged..=acknowledged + 1).contains(&found), "{what}: {found} found");
    let told = known.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(chains.of("a.db").history.starts_with(&told), "{what}: what was told is taken back");
    if point % 8 == 3 {
        dies_again(world, &chains, &what);
    }
    if point.is_multiple_of(4) {
        goes_on(&again, found, &mut chains, setup, &what);
    }
}

/// The next daemon dies, too, at every step of its recovery.
fn dies_again(world: &World, expected: &Chains, what: &str) {
    let (dir, copies) = (scratch(), scratch());
    world.snapshot(dir.path());
    let faults = Faults::none();
    let (data, to) = (dir.path().join("data"), copies.path().to_owned());
    let next = AtomicU64::new(0);
    faults.observe(move |_| {
        let copy = to.join(next.fetch_add(1, Ordering::Relaxed).to_string());
        copy_dir(&data, &copy.join("data"));
    });
    drop(World::try_open_with(dir.path(), BOOT, faults).unwrap_or_else(|error| panic!("{what}: {error}")));
    for copy in std::fs::read_dir(copies.path()).expect("a listing") {
        let copy = copy.expect("an entry").path();
        let what = format!("{what}, and again in the recovery ({})", copy.display());
        let again = World::try_open(&copy, BOOT).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut chains = Chains::default();
        chains.check_opened(&again.store, &what);
        assert_eq!(chains.of("a.db").pos.checksum, expected.of("a.db").pos.checksum, "{what}");
    }
}

/// The next transactions are taken as if nothing had been.
fn goes_on(world: &Arc<World>, found: u64, chains: &mut Chains, setup: Setup, what: &str) {
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).unwrap_or_else(|error| panic!("{what}: {error}"));
    for n in found + 1..=found + 2 {
        let done = transaction(&connection, n, &mut Random(n));
        done.unwrap_or_else(|error| panic!("{what}: transaction {n}: {error}"));
    }
    drop(connection);
    chains.check_live(&world.store);
}

fn run(setup: Setup, seed: u64, transactions: u64) {
    let seed = seed + seed_offset();
    println!("{setup:?}, seed {seed}");
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let known = Arc::new(Known::default());
    let listener = Arc::clone(&known);
    world.store.commits().watch(move |committed| {
        listener.told.lock().unwrap_or_else(PoisonError::into_inner).push(committed.meta.post);
    });
    let here = Arc::clone(&known);
    world.at_every_step(move |world, step| dies_here(world, step, &here, setup));
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).expect("set up");
    let mut random = Random(seed);
    for n in 1..=transactions {
        transaction(&connection, n, &mut random).expect("committed");
        known.acknowledged.store(n, Ordering::Release);
        if n % 4 == 2 {
            rolled_back(&connection, &mut random).expect("rolled back");
        }
    }
    drop(connection);
    world.assert_sound();
    println!("{} points", known.points.load(Ordering::Relaxed));
}

#[test]
fn a_kill_at_any_step_of_a_rollback_commit_loses_and_invents_nothing() {
    for (seed, journal) in ["DELETE", "TRUNCATE", "PERSIST"].into_iter().enumerate() {
        run(Setup::new(journal, "FULL"), 20 + seed as u64, 4);
        run(Setup::new(journal, "OFF"), 30 + seed as u64, 4);
    }
    run(Setup { exclusive: true, ..Setup::new("DELETE", "NORMAL") }, 40, 4);
}

#[test]
fn a_kill_at_any_step_of_a_wal_commit_loses_and_invents_nothing() {
    run(Setup::new("WAL", "FULL"), 50, 5);
    run(Setup::new("WAL", "NORMAL"), 51, 5);
    run(Setup { exclusive: true, ..Setup::new("WAL", "OFF") }, 52, 5);
}
