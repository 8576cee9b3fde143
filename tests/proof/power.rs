//! The power goes at every step, one step after the other: of what was not fsynced
//! any part may be left.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use litefs::db::{Batch, ChangeLog, FileKind, LogOptions};
use litefs::words::{Checksum, DbName, Faults, Pos, Txid};
use rusqlite::Connection;

use super::check::{Chains, at_rest};
use super::disk::Disk;
use super::workload::{Random, Setup, number, rolled_back, seed_offset, transaction};
use super::world::{BOOT, World, scratch};

/// What SQLite itself promises of acknowledged transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// All are there.
    All,
    /// The last one may be missing: the journal's unlink is not durable.
    AllButOne,
    /// The database is sound.
    Sound,
    /// None: only the chain is the database.
    Nothing,
}

struct Trial {
    setup: Setup,
    promise: Promise,
    seed: u64,
    acknowledged: AtomicU64,
    points: AtomicU64,
}

fn found(world: &World) -> u64 {
    let name = DbName::new("a.db").expect("a name");
    let Some(database) = world.store.database(&name) else { return 0 };
    let path = database.path(FileKind::Database);
    if std::fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
        return 0;
    }
    number(&at_rest(&path)).expect("read")
}

fn power_goes(disk: &Disk, step: &str, trial: &Trial) {
    let point = trial.points.fetch_add(1, Ordering::Relaxed);
    let acknowledged = trial.acknowledged.load(Ordering::Acquire);
    let mut random = Random(trial.seed << 32 | point);
    let dir = scratch();
    disk.lose_power(&dir.path().join("data"), &mut random);
    let what = format!(
        "{:?}, seed {}: no power at point {point} ({step}), {acknowledged} acknowledged",
        trial.setup, trial.seed
    );
    let again = World::try_open(dir.path(), "boot-2").unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut chains = Chains::default();
    if trial.promise == Promise::Nothing {
        return chains.check_same(&again.store, &what);
    }
    chains.check_opened(&again.store, &what);
    let found = found(&again);
    let least = match trial.promise {
        Promise::All => acknowledged,
        Promise::AllButOne => acknowledged.saturating_sub(1),
        Promise::Sound | Promise::Nothing => 0,
    };
    assert!((least..=acknowledged + 1).contains(&found), "{what}: {found} found");
    if point.is_multiple_of(5) {
        let process = again.process();
        let connection = process.connect("a.db");
        trial.setup.apply(&connection).unwrap_or_else(|error| panic!("{what}: {error}"));
        let done = transaction(&connection, found + 1, &mut random);
        done.unwrap_or_else(|error| panic!("{what}: {error}"));
        chains.check_live(&again.store);
        assert_eq!(chains.of("a.db").number(), found + 1, "{what}");
    }
}

fn run(setup: Setup, promise: Promise, seed: u64) {
    run_with(setup, promise, seed, |_, _| {});
}

/// `before` is called before each transaction.
fn run_with(setup: Setup, promise: Promise, seed: u64, before: impl Fn(&Connection, u64)) {
    let seed = seed + seed_offset();
    println!("{setup:?}, seed {seed}");
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let disk = Disk::watch(&world.data);
    let trial = Arc::new(Trial {
        setup,
        promise,
        seed,
        acknowledged: AtomicU64::default(),
        points: AtomicU64::default(),
    });
    let here = Arc::clone(&trial);
    world.at_every_step(move |_, step| power_goes(&disk, step, &here));
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).expect("set up");
    let mut random = Random(seed);
    for n in 1..=5 {
        before(&connection, n);
        transaction(&connection, n, &mut random).expect("committed");
        trial.acknowledged.store(n, Ordering::Release);
        match n {
            2 => rolled_back(&connection, &mut random).expect("rolled back"),
            3 => world.store.checkpoint().expect("a checkpoint"),
            4 => connection.execute_batch("PRAGMA wal_checkpoint(RESTART)").expect("checkpointed"),
            _ => {}
        }
    }
    drop(connection);
    world.assert_sound();
    println!("{} points", trial.points.load(Ordering::Relaxed));
}

#[test]
fn a_loss_of_power_takes_no_more_from_a_rollback_database_than_sqlite_allows() {
    run(Setup::new("TRUNCATE", "FULL"), Promise::All, 1);
    run(Setup::new("PERSIST", "FULL"), Promise::All, 2);
    run(Setup::new("DELETE", "EXTRA"), Promise::All, 3);
    run(Setup::new("DELETE", "FULL"), Promise::AllButOne, 4);
    run(Setup::new("DELETE", "NORMAL"), Promise::AllButOne, 5);
    run(Setup::new("TRUNCATE", "NORMAL"), Promise::AllButOne, 6);
    run(Setup::new("PERSIST", "NORMAL"), Promise::AllButOne, 7);
}

#[test]
fn where_only_some_transactions_are_fsynced_the_chain_is_the_database() {
    for (seed, mode) in ["DELETE", "TRUNCATE", "PERSIST"].into_iter().enumerate() {
        run_with(Setup::new(mode, "FULL"), Promise::Nothing, 50 + seed as u64, |connection, n| {
            let synchronous = ["FULL", "OFF", "NORMAL"][n as usize % 3];
            connection.pragma_update(None, "synchronous", synchronous).expect("set");
        });
    }
}

/// The header of the transaction before, and of what it covers some sectors each: with these
/// seeds such a journal was played back.
#[test]
fn a_journal_that_the_next_transaction_began_to_overwrite_is_not_played_back() {
    for seed in [5004, 6004, 14004, 22004] {
        run(Setup::new("DELETE", "FULL"), Promise::AllButOne, seed);
    }
    for seed in [3005, 8005, 15005] {
        run(Setup::new("DELETE", "NORMAL"), Promise::AllButOne, seed);
    }
}

/// The header states pages that are not there: with these seeds what differed was not taken over.
#[test]
fn without_any_fsync_what_is_left_of_a_shortened_file_is_taken_over() {
    for (mode, seed) in [("TRUNCATE", 2041), ("DELETE", 3040), ("TRUNCATE", 6041), ("PERSIST", 7042)] {
        run(Setup::new(mode, "OFF"), Promise::Nothing, seed);
    }
}

#[test]
fn without_any_fsync_a_loss_of_power_never_parts_the_chain_from_the_database() {
    for (seed, mode) in ["DELETE", "TRUNCATE", "PERSIST", "WAL", "WAL"].into_iter().enumerate() {
        run(Setup::new(mode, "OFF"), Promise::Nothing, 40 + seed as u64);
    }
}

#[test]
fn a_loss_of_power_takes_no_more_from_a_wal_database_than_sqlite_allows() {
    for seed in 1..4 {
        run(Setup::new("WAL", "FULL"), Promise::All, 10 + seed);
        run(Setup::new("WAL", "NORMAL"), Promise::Sound, 20 + seed);
    }
    run(Setup { exclusive: true, ..Setup::new("WAL", "FULL") }, Promise::All, 31);
}

/// Only the last file of the log may be torn, however many were left within a moment.
#[test]
fn a_loss_of_power_leaves_a_beginning_of_a_log_of_many_files() {
    for seed in 0..8 {
        let dir = scratch();
        let log = dir.path().join("log");
        std::fs::create_dir_all(&log).expect("a directory");
        let disk = Disk::watch(&log);
        let options = LogOptions { rotate_at: 1, faults: Faults::none() };
        let open = |log: &Path| ChangeLog::open(log, options.clone(), 0).expect("open");
        let (lost, _) = open(&log);
        for txid in 1..=6 {
            let (mut batch, pos) = (Batch::new(), Pos { txid: Txid::new(txid), checksum: Checksum::EMPTY });
            batch.commit(&DbName::new("a.db").expect("a name"), pos);
            let durable = lost.end();
            lost.append(&batch).expect("append");
            let left = dir.path().join(txid.to_string());
            disk.lose_power(&left, &mut Random(seed << 8 | txid));
            let end = open(&left).0.end();
            assert!((durable..=lost.end()).contains(&end), "seed {seed}: {end:?} after {durable:?}");
        }
    }
}
