//! DELETE mode on a mount whose journals are kept for the next transaction: nobody must be
//! able to tell, but by the size of a journal that is made.

mod support;

use litefs::words::DbName;
use support::mounted::{BOTH, Client, Mounted};
use support::{can_mount, wait_for};

fn prepared(mounted: &Mounted, synchronous: &str) -> Client {
    let mut client = mounted.connect("a.db");
    client.rows(&format!("PRAGMA synchronous = {synchronous}"));
    client.rows("CREATE TABLE t (a)");
    // A journal of more pages than the next transactions need.
    client.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(20)));
    client.rows("UPDATE t SET a = randomblob(3000)");
    client
}

fn numbers(count: u32) -> String {
    format!(
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
    )
}

/// SQLite asks for the journal's size to put the name of a super-journal at its end.
#[test]
fn whoever_makes_a_journal_is_told_how_long_the_kept_one_is() {
    if !can_mount() {
        return;
    }
    for passthrough in BOTH {
        let mounted = Mounted::new("kept", passthrough);
        let mut client = prepared(&mounted, "full");
        let script = "python3 -c \"
import os
name = '$M/a.db-journal'
assert not os.path.exists(name) and 'a.db-journal' not in os.listdir('$M')
journal = os.open(name, os.O_CREAT | os.O_RDWR, 0o644)
size = os.fstat(journal).st_size
assert size > 80000, size
assert os.pread(journal, 28, 0) == bytes(28)
os.pwrite(journal, bytes(512), 0)
assert os.fstat(journal).st_size == size
assert len(os.pread(journal, 100, size - 100)) == 100
os.ftruncate(journal, 700)
assert os.fstat(journal).st_size == 700
os.close(journal)
os.unlink(name)
assert not os.path.exists(name)
\"";
        mounted.ok(script);
        for anew in ["os.O_EXCL", "os.O_TRUNC"] {
            client.rows("UPDATE t SET a = randomblob(3000)");
            mounted.ok(&format!(
                "python3 -c \"
import os
journal = os.open('$M/a.db-journal', os.O_CREAT | os.O_RDWR | {anew}, 0o644)
assert os.fstat(journal).st_size == 0
assert os.pread(journal, 100, 0) == b''
os.close(journal)
os.unlink('$M/a.db-journal')
\""
            ));
        }
        assert_eq!(client.value("PRAGMA integrity_check"), "ok");
    }
}

#[test]
fn a_killed_transaction_is_rolled_back_no_further_than_it_had_got() {
    if !can_mount() {
        return;
    }
    for passthrough in BOTH {
        for synchronous in ["off", "normal", "full"] {
            let mounted = Mounted::new("kept-killed", passthrough);
            let mut one = prepared(&mounted, synchronous);
            one.rows("UPDATE t SET a = rowid");
            let before = one.value("SELECT group_concat(a) FROM t");
            let mut two = mounted.connect("a.db");
            for pages in [1, 2, 7, 15] {
                one.rows("PRAGMA cache_size = 1");
                one.rows("BEGIN");
                one.rows(&format!("UPDATE t SET a = randomblob(3000) WHERE rowid <= {pages}"));
                one.kill();
                let read = || two.attempt("SELECT group_concat(a) FROM t").ok();
                let after = wait_for("the lock to go", read);
                assert_eq!(after, [[before.clone()]], "{synchronous}, {pages} pages");
                assert_eq!(two.value("PRAGMA integrity_check"), "ok");
                one = mounted.connect("a.db");
                one.rows(&format!("PRAGMA synchronous = {synchronous}"));
            }
        }
    }
}

#[test]
fn a_dropped_database_leaves_no_journal_to_the_next_of_its_name() {
    if !can_mount() {
        return;
    }
    for passthrough in BOTH {
        let mounted = Mounted::new("kept-dropped", passthrough);
        prepared(&mounted, "full").close();
        mounted.ok("rm $M/a.db; sqlite3 $M/a.db 'CREATE TABLE u (a)'");
        let db = mounted.store.database(&DbName::new("a.db").expect("a name")).expect("the database");
        let journal = db.dir().join("journal");
        let len = std::fs::metadata(&journal).expect("kept").len();
        assert!(len < 80_000, "{len} bytes, of the database before");
        mounted.ok("sqlite3 $M/a.db 'INSERT INTO u VALUES (1)'; sqlite3 $M/a.db 'PRAGMA integrity_check'");
    }
}
