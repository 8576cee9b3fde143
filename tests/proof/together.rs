//! Copies, captures and writers at the same time.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use litefs::db::{Database, Image};
use litefs::words::{Checksum, DbName, PageSum, Pgno};

use super::check::{Chains, at_rest, integrity};
use super::workload::{Random, Setup, number, rolled_back, transaction};
use super::world::{BOOT, World, scratch};

const TRANSACTIONS: u64 = 60;

/// The number of the last transaction in an image, which is sound and adds up.
fn check(image: &Image) -> u64 {
    let mut bytes = Vec::new();
    (&image.file).read_to_end(&mut bytes).expect("the image is read");
    assert_eq!(bytes.len(), image.pages as usize * image.page_size.len());
    let pages = Pgno::up_to(image.pages).zip(bytes.chunks(image.page_size.len()));
    let sum = pages.fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(PageSum::of(pgno, page)));
    assert_eq!(sum, image.pos.checksum, "the image adds up at {}", image.pos);
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all_at(&bytes, 0).expect("written");
    integrity(file.path(), "an image");
    number(&at_rest(file.path())).expect("read")
}

fn write(world: &std::sync::Arc<World>, setup: Setup, seed: u64) {
    let process = world.process();
    let connection = process.connect("a.db");
    setup.apply(&connection).expect("set up");
    let mut random = Random(seed);
    for n in 1..=TRANSACTIONS {
        transaction(&connection, n, &mut random).expect("committed");
        if n.is_multiple_of(5) {
            rolled_back(&connection, &mut random).expect("rolled back");
        }
        if n.is_multiple_of(9) {
            let mode = if n.is_multiple_of(2) { "RESTART" } else { "TRUNCATE" };
            connection.execute_batch(&format!("PRAGMA wal_checkpoint({mode})")).expect("checkpointed");
        }
    }
}

fn capture(database: &Database, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        database.capture().expect("captured");
        std::thread::yield_now();
    }
}

fn run(setup: Setup, seed: u64) {
    println!("{setup:?}, seed {seed}");
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    setup.apply(&process.connect("a.db")).expect("set up");
    let name = DbName::new("a.db").expect("a name");
    let database = world.store.database(&name).expect("there");
    let done = AtomicBool::new(false);
    let mut images = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            write(&world, setup, seed);
            done.store(true, Ordering::Release);
        });
        scope.spawn(|| capture(&database, &done));
        scope.spawn(|| capture(&database, &done));
        let mut last = 0;
        while !writer.is_finished() {
            let image = database.image(world.store.dir()).expect("an image").expect("a database");
            let number = check(&image);
            assert!(number >= last, "an image is older than the one before");
            last = number;
            images += 1;
        }
        // Also where the writer failed.
        done.store(true, Ordering::Release);
    });
    println!("{images} images");
    let image = database.image(world.store.dir()).expect("an image").expect("a database");
    assert_eq!(check(&image), TRANSACTIONS);
    let mut chains = Chains::default();
    chains.check_live(&world.store);
    assert_eq!(chains.of("a.db").number(), TRANSACTIONS);
}

#[test]
fn a_copy_beside_writers_and_captures_is_the_database_at_its_position() {
    run(Setup::new("DELETE", "OFF"), 1);
    run(Setup::new("PERSIST", "FULL"), 2);
    run(Setup::new("WAL", "NORMAL"), 3);
}
