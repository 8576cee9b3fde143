//! Large databases, large transactions, and a log that is cleared.

use std::fs;
use std::time::Duration;

use litefs::db::{FileKind, Goal};
use litefs::store::LogRetention;
use litefs::words::{Checksum, DbName, PageSize, PageSum, Pgno, Pos, Txid};

use super::check::{Chains, at_rest};
use super::workload::{Setup, number};
use super::world::{BOOT, World, scratch};

/// How many bytes this thread has read.
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").expect("the counters");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|count| count.trim().parse().ok()).expect("a number")
}

#[test]
fn opening_a_database_of_two_gigabytes_reads_next_to_nothing() {
    let dir = scratch();
    let size = PageSize::new(4096).expect("a page size");
    let pages = 1 << 19;
    let name = DbName::new("a.db").expect("a name");
    let world = World::open(dir.path(), BOOT);
    // Sparse: only the first page has content and a checksum.
    let mut first = vec![0; size.len()];
    let process = world.process();
    let small = process.connect("small.db");
    Setup { page_size: 4096, ..Setup::new("DELETE", "OFF") }.apply(&small).expect("set up");
    drop(small);
    let path = world.store.database(&DbName::new("small.db").expect("a name")).expect("there");
    let bytes = fs::read(path.path(FileKind::Database)).expect("read");
    first.copy_from_slice(&bytes[..4096]);
    first[28..32].copy_from_slice(&u32::to_be_bytes(pages));
    let sum = PageSum::of(Pgno::FIRST, &first);
    let pos = Pos { txid: Txid::new(9), checksum: Checksum::EMPTY.toggle(sum) };
    let database = world.store.entry(&name).expect("an entry");
    let incoming = database.install(Goal { pos, page_size: size, pages }).expect("begun");
    incoming.page(Pgno::FIRST, &first, sum).expect("taken");
    incoming.finish().expect("installed");
    drop((path, database, process, world));
    for boot in [BOOT, "boot-2"] {
        let before = bytes_read();
        let world = World::open(dir.path(), boot);
        let read = bytes_read() - before;
        assert_eq!(world.store.database(&name).expect("there").pos(), pos);
        assert!(read < 1 << 20, "{read} bytes were read");
    }
}

fn insert(connection: &rusqlite::Connection, n: u64, bytes: usize) {
    connection
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; UPDATE state SET n = {n}; INSERT INTO t (v) VALUES (zeroblob({bytes})); COMMIT"
        ))
        .expect("committed");
}

fn files(world: &World, ending: &str) -> usize {
    let listed = fs::read_dir(world.data.join("log")).expect("a listing");
    listed
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().to_string_lossy().ends_with(ending)))
        .count()
}

#[test]
fn a_large_transaction_has_a_file_of_its_own_which_goes_with_its_log() {
    const NOW: LogRetention = LogRetention { age: Duration::ZERO, size: Some(0) };
    for mode in ["DELETE", "WAL"] {
        let dir = scratch();
        let world = World::open(dir.path(), BOOT);
        let process = world.process();
        let connection = process.connect("a.db");
        Setup { page_size: 32768, ..Setup::new(mode, "FULL") }.apply(&connection).expect("set up");
        insert(&connection, 1, 17 << 20);
        let name = DbName::new("a.db").expect("a name");
        let database = world.store.database(&name).expect("there");
        database.capture().expect("captured");
        assert_eq!(files(&world, ".spill"), 1);
        // More than a file of the log takes.
        for n in 2..8 {
            insert(&connection, n, 13 << 20);
            database.capture().expect("captured");
        }
        assert!(files(&world, ".log") > 1);
        world.store.keep_log(NOW).expect("kept");
        // Nothing of it is published: the chain is whole.
        let mut chains = Chains::default();
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), 7);
        // Published, and nothing in a WAL: the log before the last file goes.
        drop(connection);
        chains.follow(&world.store);
        world.store.keep_log(NOW).expect("kept");
        assert_eq!((files(&world, ".spill"), files(&world, ".log")), (0, 1));
        let pos = database.pos();
        drop((database, process, world));
        let again = World::open(dir.path(), BOOT);
        let database = again.store.database(&name).expect("there");
        assert_eq!(database.pos(), pos);
        assert_eq!(number(&at_rest(&database.path(FileKind::Database))).expect("read"), 7);
    }
}

#[test]
fn a_loss_of_power_amid_large_transactions_keeps_the_chain() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    let connection = process.connect("a.db");
    Setup { page_size: 32768, ..Setup::new("WAL", "FULL") }.apply(&connection).expect("set up");
    insert(&connection, 1, 17 << 20);
    let copy = scratch();
    world.snapshot(copy.path());
    let again = World::open(copy.path(), "boot-2");
    Chains::default().check_opened(&again.store, "after the loss of power");
    let name = DbName::new("a.db").expect("a name");
    let path = again.store.database(&name).expect("there").path(FileKind::Database);
    assert_eq!(number(&at_rest(&path)).expect("read"), 1);
}
