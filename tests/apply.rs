//! Change sets applied to a mounted database while applications read it: nobody sees
//! half of a transaction, nobody goes back, snapshots do not move, and what is there in
//! the end is what the primary has, byte for byte.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use litefs::db::{Committed, DbError, Goal};
use litefs::fuse::Passthrough;
use litefs::store::{Role, Store, StoreOptions};
use litefs::words::{DbName, FaultAction, Faults, NodeId, PageSum, Pgno, SystemClock};

use support::mounted::{BOTH, Client, Mounted};
use support::readers::{Habit, SCHEMA, STATE, grow, many, read};
use support::{PATIENCE, Scratch, can_mount, wait_for};

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

fn name(text: &str) -> DbName {
    DbName::new(text).expect("a name")
}

/// A primary and a replica, each mounted; the test carries the change sets over.
struct Pair {
    primary: Mounted,
    replica: Mounted,
    faults: Faults,
}

fn open_replica(scratch: &Scratch, faults: &Faults) -> Arc<Store> {
    let options = StoreOptions {
        dir: scratch.join("data"),
        boot_id: "this boot".to_owned(),
        new_node: NodeId::new(2),
        clock: Arc::new(SystemClock),
        faults: faults.clone(),
    };
    Arc::new(Store::open(options).unwrap_or_else(|error| panic!("open a store: {error}")))
}

fn mount_replica(scratch: Arc<Scratch>, faults: &Faults, passthrough: Passthrough) -> Mounted {
    let store = open_replica(&scratch, faults);
    let mounted = Mounted::mount(scratch, store, passthrough, false);
    let mounted = mounted.unwrap_or_else(|error| panic!("{error}"));
    mounted.store.hold_writers(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    mounted
}

impl Pair {
    fn new(label: &str, passthrough: Passthrough) -> Pair {
        let faults = Faults::none();
        let primary = Mounted::new(&format!("{label}-primary"), Passthrough::Auto);
        let scratch = Arc::new(Scratch::new(&format!("{label}-replica")));
        Pair { primary, replica: mount_replica(scratch, &faults, passthrough), faults }
    }

    /// What the primary committed since the last call.
    fn committed(&self) -> Vec<Committed> {
        for database in self.primary.store.databases() {
            database.current_pos().expect("capture");
        }
        let taken = self.primary.store.commits().take(|_| true);
        self.primary.store.commits().published();
        taken
    }

    /// Carries everything over, so many transactions at once; how many there were.
    fn carry(&self, at_once: usize) -> usize {
        let commits = self.committed();
        for batch in commits.chunk_by(|a, b| a.meta.db == b.meta.db).flat_map(|run| run.chunks(at_once)) {
            self.apply(batch).unwrap_or_else(|error| panic!("apply: {error}"));
        }
        commits.len()
    }

    /// Applies transactions of one database as one.
    fn apply(&self, batch: &[Committed]) -> Result<(), DbError> {
        self.apply_within(batch, PATIENCE)
    }

    fn apply_within(&self, batch: &[Committed], patience: Duration) -> Result<(), DbError> {
        let (first, last) = (batch.first().expect("one"), batch.last().expect("one"));
        let mut newest: BTreeMap<Pgno, (PageSum, Vec<u8>)> = BTreeMap::new();
        for commit in batch {
            if newest.len() > 1 && commit.meta.page_size != first.meta.page_size {
                newest.clear();
            }
            let stored = self.primary.store.log().read(commit.place).expect("read the log");
            for (index, (pgno, sum)) in stored.pages.iter().enumerate() {
                let mut page = Vec::new();
                stored.page(index, &mut page).expect("read a page");
                newest.insert(*pgno, (*sum, page));
            }
        }
        let database = self.replica.store.entry(&last.meta.db)?;
        let goal = Goal { pos: last.meta.post, page_size: last.meta.page_size, pages: last.meta.commit };
        let live = database.apply_live(first.meta.pre, goal, last.meta.timestamp)?;
        for (pgno, (sum, page)) in newest.iter().rev().filter(|(pgno, _)| pgno.get() <= goal.pages) {
            live.page(*pgno, page, *sum).expect("spool");
        }
        live.finish(patience)
    }

    /// Both have the same bytes.
    fn same(&self, db: &str) {
        let bytes = |store: &Store, dir: &Path| {
            let database = store.database(&name(db)).expect("it is there");
            let image = database.image(dir).expect("a copy").expect("has transactions");
            let len = usize::try_from(image.file.metadata().expect("stat").len()).expect("fits");
            let mut bytes = vec![0; len];
            image.file.read_exact_at(&mut bytes, 0).expect("read");
            (image.pos, bytes)
        };
        let left = bytes(&self.primary.store, &self.primary.scratch().join("data"));
        let right = bytes(&self.replica.store, &self.replica.scratch().join("data"));
        assert_eq!(left.0, right.0, "positions of {db}");
        assert!(left.1 == right.1, "bytes of {db} differ at {}", left.0);
    }

    /// The replica's daemon dies and comes back.
    fn die(self) -> Pair {
        let Pair { primary, replica, faults } = self;
        let (scratch, passthrough) = (replica.scratch(), replica.mount.passthrough());
        drop(replica);
        faults.clear();
        let passthrough = if passthrough { Passthrough::Auto } else { Passthrough::Off };
        let replica = mount_replica(scratch, &faults, passthrough);
        Pair { primary, replica, faults }
    }
}

fn begin(pair: &Pair, db: &str, mode: &str) -> Client {
    let mut client = pair.primary.connect(db);
    client.rows(&format!("PRAGMA journal_mode = {mode}"));
    client.rows("PRAGMA synchronous = off");
    for sql in SCHEMA.split(';') {
        client.rows(sql);
    }
    pair.carry(1);
    client
}

fn readers_see_whole_transactions(mode: &str, passthrough: Passthrough) {
    let pair = Pair::new(&format!("readers-{mode}"), passthrough);
    let mut client = begin(&pair, "a.db", mode);
    let stop = AtomicBool::new(false);
    let path = pair.replica.path("a.db");
    std::thread::scope(|scope| {
        let readers: Vec<_> = [Habit::Loop, Habit::Long, Habit::Reopen]
            .map(|habit| {
                let (path, stop) = (&path, &stop);
                scope.spawn(move || read(path, habit, stop))
            })
            .into();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..32 {
                grow(&mut client, 100 + round * 37);
                match round {
                    10 => many(&mut client, 3000, 3500),
                    20 => {
                        // n stays, so what goes is put back as other rows.
                        client.rows("UPDATE t SET a = randomblob(length(a)) WHERE rowid % 3 = 0");
                    }
                    25 => {
                        client.rows("VACUUM");
                    }
                    30 => {
                        client.rows("CREATE TABLE more (b)");
                    }
                    _ => {}
                }
                pair.carry(1 + round as usize % 3);
            }
        }));
        stop.store(true, Ordering::Release);
        let counts: Vec<u32> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
        assert!(ended.is_ok(), "the writer failed");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    });
    pair.same("a.db");
    let mut reader = pair.replica.connect("a.db");
    assert_eq!(reader.value("PRAGMA integrity_check"), "ok");
    assert_eq!(reader.value("SELECT count(*) FROM t"), client.value("SELECT count(*) FROM t"));
}

#[test]
fn readers_of_a_wal_replica_see_whole_transactions() {
    needs_a_mount!();
    BOTH.into_iter().for_each(|passthrough| readers_see_whole_transactions("wal", passthrough));
}

#[test]
fn readers_of_a_rollback_replica_see_whole_transactions() {
    needs_a_mount!();
    BOTH.into_iter().for_each(|passthrough| readers_see_whole_transactions("delete", passthrough));
}

#[test]
fn the_wal_of_a_replica_begins_anew_once_it_has_grown() {
    needs_a_mount!();
    for passthrough in BOTH {
        let pair = Pair::new("apply-wal-size", passthrough);
        let mut client = begin(&pair, "a.db", "wal");
        let wal = pair.replica.path("a.db-wal");
        let mut most = 0;
        // About a hundred frames each.
        for _ in 0..40 {
            many(&mut client, 100, 3500);
            pair.carry(1);
            most = most.max(std::fs::metadata(&wal).expect("a wal").len());
        }
        let frames = most / (4096 + 24);
        assert!((1000..1300).contains(&frames), "{frames} frames");
        pair.same("a.db");
        client.close();
    }
}

#[test]
fn writers_on_a_replica_fail_as_sqlite_fails_and_work_after_promotion() {
    needs_a_mount!();
    for passthrough in BOTH {
        let pair = Pair::new("refused", passthrough);
        for (mode, text) in
            [("wal", "database is locked"), ("delete", "attempt to write a readonly database")]
        {
            let db = format!("{mode}.db");
            let mut client = begin(&pair, &db, mode);
            let mut other = pair.replica.connect(&db);
            assert_eq!(other.attempt("INSERT INTO t VALUES (1)"), Err(text.to_owned()), "{mode}");
            grow(&mut client, 50);
            pair.carry(1);
            assert_eq!(other.value("SELECT n FROM m"), "1", "{mode}");
            // The same connections write once the node is the primary.
            pair.replica.store.set_role(Role::Primary);
            pair.replica.store.release_writers().expect("release");
            let database = pair.replica.store.database(&name(&db)).expect("it is there");
            let before = database.pos();
            other.rows("INSERT INTO t VALUES (1)");
            assert_eq!(other.value("SELECT count(*) FROM t"), "2");
            wait_for("the commit to be captured", || {
                let now = database.current_pos().expect("capture");
                (now.txid == before.txid.next()).then_some(())
            });
            // And no longer once it is not.
            pair.replica.store.set_role(Role::default());
            pair.replica.store.hold_writers(PATIENCE).expect("hold");
            assert_eq!(other.attempt("INSERT INTO t VALUES (1)"), Err(text.to_owned()), "{mode}");
            let image = database.image(&pair.replica.scratch().join("data")).expect("a copy");
            assert_eq!(image.expect("has transactions").pos, database.pos());
        }
    }
}

#[test]
fn journal_mode_and_page_size_change_and_a_drop_arrive() {
    needs_a_mount!();
    for passthrough in BOTH {
        let pair = Pair::new("switch", passthrough);
        let mut client = begin(&pair, "a.db", "delete");
        let mut reader = pair.replica.connect("a.db");
        let steps: [&[&str]; 6] = [
            &["PRAGMA journal_mode = wal"],
            &["PRAGMA journal_mode = persist"],
            &["PRAGMA page_size = 8192", "VACUUM"],
            &["PRAGMA journal_mode = wal"],
            &[
                "PRAGMA journal_mode = delete",
                "PRAGMA page_size = 1024",
                "VACUUM",
                "PRAGMA journal_mode = wal",
            ],
            &["PRAGMA wal_checkpoint(TRUNCATE)"],
        ];
        for (number, step) in steps.iter().enumerate() {
            grow(&mut client, 5000);
            for sql in *step {
                client.rows(sql);
            }
            grow(&mut client, 70);
            assert_eq!(reader.value("PRAGMA integrity_check"), "ok", "before step {number}");
            if number != 0 {
                // Readers of a WAL keep a lock: they must go before the mode can change.
                reader.close();
                pair.carry(if number % 2 == 0 { 1 } else { 100 });
                reader = pair.replica.connect("a.db");
            } else {
                pair.carry(1);
            }
            assert_eq!(reader.value("SELECT n FROM m"), (2 * number + 2).to_string(), "step {number}");
            assert_eq!(reader.value("PRAGMA page_size"), client.value("PRAGMA page_size"));
            pair.same("a.db");
        }
        client.close();
        pair.primary.ok("rm $M/a.db");
        assert_eq!(pair.carry(1), 1);
        assert!(!pair.replica.path("a.db").exists());
        assert!(!pair.replica.path("a.db-wal").exists());
        assert_eq!(reader.value("SELECT n FROM m"), "12", "who has it open keeps it");
        reader.close();
        // The name comes back.
        let mut client = begin(&pair, "a.db", "wal");
        grow(&mut client, 10);
        pair.carry(5);
        assert_eq!(pair.replica.connect("a.db").value("SELECT n FROM m"), "1");
        pair.same("a.db");
    }
}

#[test]
fn a_reader_in_the_way_makes_it_busy_and_nothing_changes() {
    needs_a_mount!();
    let pair = Pair::new("busy", Passthrough::Auto);
    let mut client = begin(&pair, "a.db", "delete");
    let mut reader = pair.replica.connect("a.db");
    reader.rows("BEGIN");
    assert_eq!(reader.value("SELECT n FROM m"), "0");
    grow(&mut client, 10);
    let commits = pair.committed();
    let result = pair.apply_within(&commits, Duration::from_millis(50));
    assert!(matches!(result, Err(DbError::Busy { .. })), "{result:?}");
    assert_eq!(reader.value("SELECT n FROM m"), "0");
    assert_eq!(pair.replica.connect("a.db").value("SELECT n FROM m"), "0", "others may come in");
    reader.rows("COMMIT");
    pair.apply(&commits).expect("apply");
    assert_eq!(reader.value("SELECT n FROM m"), "1");
    pair.same("a.db");
}

#[test]
fn a_death_at_any_step_leaves_a_position_of_the_chain() {
    needs_a_mount!();
    let points = ["apply.frames", "apply.logged", "apply.published", "apply.checkpoint"];
    let alone = ["apply.prepared", "apply.written", "apply.told"];
    for (mode, points) in [("wal", &points[..]), ("delete", &alone[..])] {
        for at_once in [1, 3] {
            let mut pair = Pair::new("death", Passthrough::Auto);
            let mut client = begin(&pair, "a.db", mode);
            for point in points {
                for _ in 0..3 {
                    grow(&mut client, 3000);
                }
                if *point == "apply.checkpoint" {
                    many(&mut client, 1100, 3000);
                }
                let commits = pair.committed();
                pair.faults.arm(point, FaultAction::Errno(libc::EIO), 1);
                let from = commits[0].meta.pre;
                let mut reached = vec![from];
                for batch in commits.chunks(at_once) {
                    reached.push(batch.last().expect("one").meta.post);
                    if pair.apply(batch).is_err() {
                        break;
                    }
                }
                pair = pair.die();
                let database = pair.replica.store.database(&name("a.db")).expect("it is there");
                let pos = database.pos();
                assert!(reached.contains(&pos), "{mode} {point}: {pos} is none of {reached:?}");
                let mut reader = pair.replica.connect("a.db");
                assert_eq!(reader.value("PRAGMA integrity_check"), "ok", "{mode} {point}");
                assert_eq!(reader.rows(STATE)[0][1..], ["0", "0"], "{mode} {point}");
                reader.close();
                let rest: Vec<Committed> =
                    commits.into_iter().filter(|commit| commit.meta.post.txid > pos.txid).collect();
                for commit in &rest {
                    pair.apply(std::slice::from_ref(commit)).expect("go on");
                }
                pair.same("a.db");
            }
        }
    }
}

#[test]
fn a_failure_is_made_good_by_the_next_attempt() {
    needs_a_mount!();
    let all = ["apply.frames", "apply.prepared", "apply.written", "apply.logged", "apply.checkpoint"];
    for mode in ["wal", "delete"] {
        let pair = Pair::new("again", Passthrough::Auto);
        let mut client = begin(&pair, "a.db", mode);
        let mut reader = pair.replica.connect("a.db");
        for point in all {
            grow(&mut client, 3000);
            if point == "apply.checkpoint" {
                many(&mut client, 1100, 3000);
            }
            grow(&mut client, 10);
            let commits = pair.committed();
            pair.faults.arm(point, FaultAction::Errno(libc::ENOSPC), 1);
            let database = pair.replica.store.database(&name("a.db")).expect("it is there");
            for commit in &commits {
                if pair.apply(std::slice::from_ref(commit)).is_err() {
                    pair.faults.clear();
                    if database.pos() != commit.meta.post {
                        pair.apply(std::slice::from_ref(commit)).expect("the second time");
                    }
                }
            }
            pair.faults.clear();
            assert_eq!(reader.value("PRAGMA integrity_check"), "ok", "{mode} {point}");
            assert_eq!(reader.rows(STATE)[0][1..], ["0", "0"], "{mode} {point}");
            pair.same("a.db");
        }
        assert_eq!(reader.value("SELECT n FROM m"), client.value("SELECT n FROM m"));
    }
}
