//! After every transaction in every journal mode the chain is the database.

use super::check::Chains;
use super::workload::{Random, Setup, number, rolled_back, seed_offset, transaction};
use super::world::{World, scratch};

fn run(setup: Setup, seed: u64) {
    let seed = seed + seed_offset();
    println!("{setup:?}, seed {seed}");
    let dir = scratch();
    let world = World::open(dir.path(), "boot");
    let mut chains = Chains::default();
    let mut random = Random(seed);
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).expect("set up");
    chains.check_live(&world.store);
    for n in 1..=30 {
        transaction(&connection, n, &mut random).expect("committed");
        chains.check_live(&world.store);
        assert_eq!(chains.of("a.db").number(), n, "it is captured");
        match random.below(12) {
            0 => rolled_back(&connection, &mut random).expect("rolled back"),
            1 => connection.execute_batch("VACUUM").expect("vacuumed"),
            2 => connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpointed"),
            3 => connection.execute_batch("PRAGMA incremental_vacuum(3)").expect("vacuumed"),
            4 if !setup.exclusive => {
                let other = process.connect("a.db");
                assert_eq!(number(&other).expect("read"), n);
            }
            _ => {}
        }
        chains.check_live(&world.store);
    }
    drop(connection);
    chains.check_live(&world.store);
    drop((process, world));
    let again = World::open(dir.path(), "boot");
    let mut all = Chains::default();
    all.check_opened(&again.store, "reopened");
    assert_eq!(all.of("a.db").history, chains.of("a.db").history);
}

#[test]
fn the_chain_is_the_database_in_every_mode() {
    let mut seed = 1;
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        for synchronous in ["OFF", "FULL"] {
            for (page_size, auto_vacuum) in [(1024, 0), (512, 1), (4096, 2)] {
                for exclusive in [false, true] {
                    seed += 1;
                    run(Setup { journal, synchronous, page_size, auto_vacuum, exclusive }, seed);
                }
            }
        }
    }
}
