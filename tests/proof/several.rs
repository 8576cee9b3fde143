//! Transactions over several databases: a super-journal decides, also after a death.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use litefs::db::FileKind;

use super::check::{Chains, at_rest};
use super::disk::Disk;
use super::workload::{Random, Setup, seed_offset};
use super::world::{BOOT, World, scratch};

fn values(world: &World) -> Vec<i64> {
    let read = |database: &Arc<litefs::db::Database>| {
        let file = at_rest(&database.path(FileKind::Database));
        file.query_row("SELECT max(n) FROM state", [], |row| row.get(0)).expect("read")
    };
    world.store.databases().iter().map(read).collect()
}

fn dies_here(world: &World, step: &str) {
    let dir = scratch();
    world.snapshot(dir.path());
    check(dir.path(), BOOT, &format!("killed at {step}"));
}

fn power_goes(disk: &Disk, step: &str, point: u64) {
    let dir = scratch();
    let seed = seed_offset() << 32 | point;
    disk.lose_power(&dir.path().join("data"), &mut Random(seed));
    check(dir.path(), "boot-2", &format!("no power at {step}, seed {seed}"));
}

fn check(dir: &Path, boot: &str, what: &str) {
    let again = World::try_open(dir, boot).unwrap_or_else(|error| panic!("{what}: {error}"));
    Chains::default().check_opened(&again.store, what);
    let values = values(&again);
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{what}: {values:?}");
    let left = std::fs::read_dir(again.data.join("super")).expect("a listing").count();
    assert_eq!(left, 0, "{what}: no super-journal is left");
}

#[test]
fn a_commit_over_several_databases_is_all_or_nothing_at_every_step() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let dir = scratch();
        let world = World::open(dir.path(), BOOT);
        let process = world.process();
        let names = ["a.db", "b.db", "dir.d"];
        for name in names {
            let connection = process.connect(name);
            Setup::new(mode, "FULL").apply(&connection).expect("set up");
        }
        let connection = process.connect("a.db");
        Setup::new(mode, "FULL").apply(&connection).expect("set up");
        for (at, name) in names.iter().enumerate().skip(1) {
            let path = world.mount.join(name);
            connection
                .execute_batch(&format!(
                    "ATTACH '{}' AS d{at}; PRAGMA d{at}.journal_mode = {mode}; PRAGMA d{at}.synchronous = FULL",
                    path.display()
                ))
                .expect("attached");
        }
        let points = Arc::new(AtomicU64::new(0));
        let (count, disk) = (Arc::clone(&points), Disk::watch(&world.data));
        world.at_every_step(move |world, step| {
            let point = count.fetch_add(1, Ordering::Relaxed);
            dies_here(world, step);
            for draw in 0..3 {
                power_goes(&disk, step, point << 2 | draw);
            }
        });
        for n in 1..4 {
            connection
                .execute_batch(&format!(
                    "BEGIN IMMEDIATE; UPDATE state SET n = {n}; UPDATE d1.state SET n = {n}; \
                     UPDATE d2.state SET n = {n}; COMMIT"
                ))
                .expect("committed");
        }
        drop(connection);
        world.assert_sound();
        println!("{mode}: {} points", points.load(Ordering::Relaxed));
        Chains::default().check_live(&world.store);
    }
}
