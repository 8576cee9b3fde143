//! What is special in WAL mode: frames that nobody published, restarts, exclusive
//! connections, the file at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use litefs::db::FileKind;
use litefs::words::DbName;

use super::check::{Chains, integrity};
use super::workload::{Random, Setup, number, transaction};
use super::world::{BOOT, World, scratch};

const FULL: Setup = Setup::new("WAL", "FULL");

/// Kills `process` at the next step of this name.
fn kill_at(world: &Arc<World>, process: &Arc<super::world::Process>, step: &'static str) {
    let (process, done) = (Arc::downgrade(process), AtomicBool::new(false));
    world.at_every_step(move |_, here| {
        if here == step
            && !done.swap(true, Ordering::AcqRel)
            && let Some(process) = process.upgrade()
        {
            process.kill();
        }
    });
}

#[test]
fn a_commit_frame_that_was_never_published_is_no_transaction() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let (first, second) = (world.process(), world.process());
    let (doomed, other) = (first.connect("a.db"), second.connect("a.db"));
    FULL.apply(&doomed).expect("set up");
    FULL.apply(&other).expect("set up");
    let mut random = Random(1);
    transaction(&doomed, 1, &mut random).expect("committed");
    let mut chains = Chains::default();
    chains.check_live(&world.store);
    let before = chains.of("a.db").history.len();
    // Killed after its frames are written and before they are published.
    kill_at(&world, &first, "sync db-wal");
    transaction(&doomed, 2, &mut random).expect_err("killed");
    world.at_no_step();
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").history.len(), before, "nothing was captured");
    drop(doomed);
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").history.len(), before, "nothing was captured");
    assert_eq!(number(&other).expect("read"), 1);
    for n in 2..20 {
        transaction(&other, n, &mut random).expect("committed");
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n, "it is captured");
    }
    drop(other);
    chains.check_live(&world.store);
    let name = DbName::new("a.db").expect("a name");
    integrity(&world.store.database(&name).expect("there").path(FileKind::Database), "closed");
}

#[test]
fn a_commit_that_was_never_published_in_a_new_wal_does_not_appear_when_the_last_closes() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let (first, second) = (world.process(), world.process());
    let (doomed, other) = (first.connect("a.db"), second.connect("a.db"));
    FULL.apply(&doomed).expect("set up");
    FULL.apply(&other).expect("set up");
    let mut random = Random(4);
    transaction(&doomed, 1, &mut random).expect("committed");
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoint");
    let mut chains = Chains::default();
    chains.check_live(&world.store);
    let before = chains.of("a.db").history.len();
    // The first synced write is the WAL's header; the second are the frames, complete
    // with the commit, which the death keeps from being published.
    let (process, syncs) = (Arc::downgrade(&first), AtomicUsize::new(0));
    world.at_every_step(move |_, here| {
        if here == "sync db-wal"
            && syncs.fetch_add(1, Ordering::AcqRel) == 1
            && let Some(process) = process.upgrade()
        {
            process.kill();
        }
    });
    transaction(&doomed, 2, &mut random).expect_err("killed");
    world.at_no_step();
    drop(doomed);
    drop(other);
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").history.len(), before, "nothing was captured");
    drop(world);
    let again = World::open(dir.path(), BOOT);
    Chains::default().check_opened(&again.store, "reopened");
}

#[test]
fn a_writer_that_dies_alone_is_recovered_from_as_sqlite_does() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let mut random = Random(2);
    let mut chains = Chains::default();
    let mut n = 0;
    for step in ["sync db-wal", "write db-wal", "write db", "truncate db", "unlink shm of db"] {
        let process = world.process();
        let connection = process.connect("a.db");
        FULL.apply(&connection).expect("set up");
        n = number(&connection).expect("read");
        kill_at(&world, &process, step);
        while transaction(&connection, n + 1, &mut random).is_ok() && n < 60 {
            n += 1;
            if n.is_multiple_of(20) {
                break;
            }
        }
        drop(connection);
        world.at_no_step();
        chains.check_live(&world.store);
        let next = world.process();
        let connection = next.connect("a.db");
        let found = number(&connection).expect("read");
        assert!(found == n || found == n + 1, "{step}: {found} after {n}");
        chains.check_live(&world.store);
        transaction(&connection, found + 1, &mut random).expect("committed");
        n = found + 1;
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n, "it is captured");
    }
    assert!(n > 0);
    drop(world);
    let again = World::open(dir.path(), BOOT);
    Chains::default().check_opened(&again.store, "reopened");
}

#[test]
fn an_exclusive_connection_goes_on_in_the_wal_that_others_left() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let mut random = Random(3);
    let mut chains = Chains::default();
    let process = world.process();
    let connection = process.connect("a.db");
    FULL.apply(&connection).expect("set up");
    transaction(&connection, 1, &mut random).expect("committed");
    // It dies between the unlinks of the wal-index and of the WAL.
    let victim = Arc::downgrade(&process);
    world.at_every_step(move |world, here| {
        let wal = format!("unlink {}", world.mount.join("a.db-wal").display());
        if here == wal
            && let Some(process) = victim.upgrade()
        {
            process.kill();
        }
    });
    drop(connection);
    world.at_no_step();
    let process = world.process();
    let exclusive = process.connect("a.db");
    Setup { exclusive: true, ..FULL }.apply(&exclusive).expect("set up");
    for n in 2..30 {
        transaction(&exclusive, n, &mut random).expect("committed");
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n, "it is captured");
    }
    drop(exclusive);
    chains.check_live(&world.store);
}

#[test]
fn the_page_size_and_the_journal_mode_may_change_under_the_chain() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    let connection = process.connect("a.db");
    FULL.apply(&connection).expect("set up");
    let (mut random, mut chains, mut n) = (Random(4), Chains::default(), 0);
    for (mode, size) in [("DELETE", 4096), ("WAL", 4096), ("PERSIST", 512), ("WAL", 512), ("TRUNCATE", 65536)]
    {
        connection
            .execute_batch(&format!("PRAGMA journal_mode = {mode}; PRAGMA page_size = {size}; VACUUM"))
            .expect("switched");
        chains.check_live(&world.store);
        for _ in 0..6 {
            n += 1;
            transaction(&connection, n, &mut random).expect("committed");
            chains.check_live(&world.store);
            assert_eq!(chains.of("a.db").number(), n, "it is captured");
        }
    }
    drop(connection);
    chains.check_live(&world.store);
    drop((process, world));
    let again = World::open(dir.path(), BOOT);
    Chains::default().check_opened(&again.store, "reopened");
}

#[test]
fn what_sqlite_takes_back_in_its_recovery_is_a_transaction_of_its_own() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    let connection = process.connect("a.db");
    FULL.apply(&connection).expect("set up");
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0").expect("set");
    let (mut random, mut chains) = (Random(5), Chains::default());
    for n in 1..=6 {
        transaction(&connection, n, &mut random).expect("committed");
    }
    chains.check_live(&world.store);
    let name = DbName::new("a.db").expect("a name");
    let wal = world.store.database(&name).expect("there").path(FileKind::Wal);
    let whole = std::fs::metadata(&wal).expect("there").len();
    transaction(&connection, 7, &mut random).expect("committed");
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").number(), 7);
    process.kill();
    drop(connection);
    // A chain that SQLite does not believe any more, as 3.40.1 may leave one.
    let file = std::fs::OpenOptions::new().write(true).open(&wal).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 8], whole + 16).expect("written");
    let next = world.process();
    let connection = next.connect("a.db");
    assert_eq!(number(&connection).expect("read"), 6);
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").number(), 6);
    for n in 7..12 {
        transaction(&connection, n, &mut random).expect("committed");
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n);
    }
}
