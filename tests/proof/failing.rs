//! The disk is full, or fails, at each step of the daemon in turn: SQLite is told,
//! nothing is lost, and when the disk works again everything goes on.

use litefs::words::FaultAction;

use super::check::Chains;
use super::workload::{Random, Setup, number, transaction};
use super::world::{BOOT, World, scratch};

const POINTS: [&str; 7] =
    ["log.append", "log.sync", "capture.commit", "capture.committed", "db.sync", "db.removed", "capture.wal"];

fn run(setup: Setup, point: &str, errno: i32) {
    println!("{setup:?}, {point} fails with {errno}");
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).expect("set up");
    let (mut random, mut chains, mut refused) = (Random(9), Chains::default(), 0);
    let mut n = 0;
    for round in 0..8 {
        world.faults.arm(point, FaultAction::Errno(errno), 1 + round % 3);
        for _ in 0..3 {
            let done = transaction(&connection, n + 1, &mut random);
            refused += u32::from(done.is_err());
            if done.is_ok() {
                n += 1;
            } else {
                // What an error said of a commit may be true or not, as with SQLite on
                // any disk: the database says which.
                world.faults.clear();
                let found = number(&connection).expect("read");
                assert!(found == n || found == n + 1, "{found} after {n}");
                n = found;
                break;
            }
        }
        world.faults.clear();
        transaction(&connection, n + 1, &mut random).expect("the disk works again");
        n += 1;
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n, "it is captured");
    }
    println!("{refused} were refused");
    drop(connection);
    chains.check_live(&world.store);
    drop((process, world));
    let again = World::open(dir.path(), BOOT);
    let mut all = Chains::default();
    all.check_opened(&again.store, point);
    assert_eq!(all.of("a.db").history, chains.of("a.db").history);
}

#[test]
fn a_disk_that_fails_is_an_error_for_sqlite_and_no_loss() {
    for point in POINTS {
        for errno in [libc::ENOSPC, libc::EIO] {
            for journal in ["DELETE", "PERSIST", "WAL"] {
                run(Setup::new(journal, "FULL"), point, errno);
            }
            run(Setup { exclusive: true, ..Setup::new("TRUNCATE", "OFF") }, point, errno);
        }
    }
}
