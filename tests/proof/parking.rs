//! A branch that lost is kept whole, and the database waits for another.

use litefs::db::FileKind;
use litefs::words::{DbName, Pos};

use super::check::{Chains, at_rest, integrity};
use super::workload::{Random, Setup, number, transaction};
use super::world::{BOOT, World, scratch};

#[test]
fn a_parked_branch_is_a_whole_database_and_leaves_none_behind() {
    let dir = scratch();
    let world = World::open(dir.path(), BOOT);
    let process = world.process();
    let connection = process.connect("a.db");
    Setup::new("WAL", "FULL").apply(&connection).expect("set up");
    for n in 1..=4 {
        transaction(&connection, n, &mut Random(n)).expect("committed");
    }
    drop(connection);
    let mut chains = Chains::default();
    chains.follow(&world.store);
    let name = DbName::new("a.db").expect("a name");
    let database = world.store.database(&name).expect("there");
    let parked = world.store.park(&database).expect("parked");
    assert_eq!(parked.pos, chains.of("a.db").pos);
    assert_eq!(world.store.parked_count(), 1);
    let kept = std::fs::read_dir(world.data.join("parked")).expect("a listing").next();
    let file = kept.expect("an entry").expect("an entry").path().join("database");
    assert!(!database.exists() && !database.path(FileKind::Database).exists());
    drop((database, process, world));
    let again = World::open(dir.path(), BOOT);
    let database = again.store.known(&name).expect("known");
    assert!(database.incomplete() && !database.exists());
    assert_eq!(database.pos(), Pos::ZERO);
    assert!(again.store.commits().take(|_| true).is_empty(), "nothing of the branch is published");
    integrity(&file, "the parked branch");
    assert_eq!(number(&at_rest(&file)).expect("read"), 4);
}
