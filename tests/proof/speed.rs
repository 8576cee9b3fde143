//! What capture itself costs a commit. Not a test that fails: a number to look at.

use std::time::Instant;

use litefs::words::DbName;

use super::workload::Setup;
use super::world::{BOOT, World, scratch};

#[test]
#[ignore = "a measurement: cargo test --release --test proof -- --ignored --nocapture speed"]
fn the_price_of_capture() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let dir = scratch();
        let world = World::open(dir.path(), BOOT);
        let process = world.process();
        let connection = process.connect("a.db");
        Setup { page_size: 4096, ..Setup::new(mode, "OFF") }.apply(&connection).expect("set up");
        connection.execute_batch("PRAGMA wal_autocheckpoint = 0").expect("set");
        let database = world.store.database(&DbName::new("a.db").expect("a name")).expect("there");
        let mut update = connection.prepare("UPDATE state SET n = n + 1").expect("prepared");
        let (mut commits, mut captures) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            let start = Instant::now();
            update.execute([]).expect("committed");
            let between = Instant::now();
            database.capture().expect("captured");
            commits.push(between - start);
            captures.push(between.elapsed());
        }
        commits.sort_unstable();
        captures.sort_unstable();
        println!(
            "{mode}: commit {:?} (p50), capture {:?} (p50), {:?} (p99)",
            commits[10_000], captures[10_000], captures[19_800]
        );
    }
}
