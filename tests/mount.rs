//! What applications meet in the mount: names, made-up files, modes, rights, and how a
//! mount begins and ends.

mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use litefs::db::FileKind;
use litefs::fuse::{MountError, Passthrough, Unmounted};
use litefs::store::Role;
use litefs::words::DbName;

use support::mounted::{BOTH, Client, END, Mounted, open_store, shell};
use support::{Scratch, can_mount, is_root, wait_for};

/// Another user than root.
const NOBODY: u32 = 65534;

/// A table of that many rows.
fn numbers(count: u32) -> String {
    format!(
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
    )
}

macro_rules! needs_a_mount {
    () => {
        if !can_mount() {
            return;
        }
    };
}

#[test]
fn every_journal_mode_works_between_processes_with_and_without_passthrough() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("modes", passthrough);
        for mode in ["delete", "truncate", "persist", "wal"] {
            for sync in ["off", "full"] {
                let name = format!("{mode}-{sync}.db");
                let mut one = mounted.connect(&name);
                assert_eq!(one.value(&format!("PRAGMA journal_mode = {mode}")), mode);
                one.rows(&format!("PRAGMA synchronous = {sync}"));
                one.rows("CREATE TABLE t (a)");
                let mut two = mounted.connect(&name);
                for number in 0..10 {
                    one.rows(&format!("INSERT INTO t VALUES ({number})"));
                    assert_eq!(two.value("SELECT count(*) FROM t"), (number + 1).to_string(), "{name}");
                }
                one.rows("BEGIN IMMEDIATE");
                assert_eq!(two.attempt("BEGIN IMMEDIATE"), Err("database is locked".to_owned()), "{name}");
                one.rows("ROLLBACK");
                assert_eq!(two.value("PRAGMA integrity_check"), "ok", "{name}");
                wait_for("every transaction to be captured", || (mounted.txid(&name) >= 11).then_some(()));
            }
        }
    }
}

#[test]
fn wal_commits_are_captured_without_being_asked_for() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("watch", passthrough);
        let mut client = mounted.connect("a.db");
        client.rows("PRAGMA journal_mode = wal");
        client.rows("PRAGMA synchronous = normal");
        client.rows("CREATE TABLE t (a)");
        let mut last = 0;
        for _ in 0..20 {
            client.rows("INSERT INTO t VALUES (1)");
            wait_for("the commit to be captured", || (mounted.txid("a.db") > last).then_some(()));
            last = mounted.txid("a.db");
        }
    }
}

#[test]
fn a_commit_of_a_journal_that_is_kept_is_captured_without_being_asked_for() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("kept", passthrough);
        for mode in ["delete", "persist", "truncate"] {
            // In EXCLUSIVE mode SQLite keeps the journal open and only zeroes its header.
            let name = format!("{mode}.db");
            let mut client = mounted.connect(&name);
            client.rows("PRAGMA locking_mode = exclusive");
            client.rows(&format!("PRAGMA journal_mode = {mode}"));
            client.rows("PRAGMA synchronous = off");
            client.rows("CREATE TABLE t (a)");
            for number in 2..10 {
                client.rows("INSERT INTO t VALUES (1)");
                wait_for(&format!("{mode}: commit {number}"), || {
                    (mounted.txid(&name) >= number).then_some(())
                });
            }
        }
    }
}

#[test]
fn exclusive_mode_works_in_wal_mode() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("exclusive", passthrough);
        let mut client = mounted.connect("a.db");
        client.rows("PRAGMA locking_mode = exclusive");
        client.rows("PRAGMA journal_mode = wal");
        client.rows("CREATE TABLE t (a)");
        client.rows("INSERT INTO t VALUES (1)");
        assert!(!mounted.path("a.db-shm").exists());
        wait_for("the commits to be captured", || (mounted.txid("a.db") >= 2).then_some(()));
        client.close();
        assert_eq!(mounted.connect("a.db").value("SELECT count(*) FROM t"), "1");
    }
}

#[test]
fn mmap_sees_what_other_processes_write() {
    needs_a_mount!();
    for (passthrough, mode) in BOTH.iter().flat_map(|both| ["delete", "wal"].map(|mode| (both, mode))) {
        let mounted = Mounted::new("mmap", *passthrough);
        let mut one = mounted.connect("a.db");
        one.rows(&format!("PRAGMA journal_mode = {mode}"));
        one.rows("CREATE TABLE t (a)");
        one.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(100)));
        let mut two = mounted.connect("a.db");
        assert_eq!(two.value("PRAGMA mmap_size = 1000000000"), "1000000000");
        for round in 0..10 {
            let sum = "SELECT sum(unicode(hex(a))) FROM t";
            one.rows("UPDATE t SET a = randomblob(3000)");
            one.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(20)));
            if round % 2 == 0 {
                one.rows("PRAGMA wal_checkpoint");
            }
            assert_eq!(one.value(sum), two.value(sum), "{mode}");
        }
    }
}

#[test]
fn a_listing_names_what_is_there() {
    needs_a_mount!();
    let mounted = Mounted::new("listing", Passthrough::Auto);
    assert_eq!(mounted.ok("ls -A $M"), ".lag");
    let mut client = mounted.connect("a.db");
    client.rows("PRAGMA journal_mode = wal");
    client.rows("CREATE TABLE t (a)");
    assert_eq!(mounted.ok("ls -A $M | tr '\\n' ' '"), ".lag a.db a.db-pos a.db-shm a.db-wal");
    client.close();
    assert_eq!(mounted.ok("ls -A $M | tr '\\n' ' '"), ".lag a.db a.db-pos");
    // Many names come in several requests.
    mounted.ok("cd $M; for i in $(seq 300); do : > n$i.db; done");
    assert_eq!(mounted.ok("ls -A $M | sort -u | wc -l"), "603");
    assert_eq!(mounted.ok("ls -lA $M | grep -c ^-"), "603");
}

#[test]
fn the_position_file_counts_what_was_committed() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("pos", passthrough);
        for mode in ["delete", "wal"] {
            let name = format!("{mode}.db");
            let mut client = mounted.connect(&name);
            client.rows(&format!("PRAGMA journal_mode = {mode}"));
            client.rows("CREATE TABLE t (a)");
            let read = || mounted.ok(&format!("cat $M/{name}-pos"));
            let mut txid = u64::from_str_radix(&read()[..16], 16).expect("a txid");
            for _ in 0..20 {
                client.rows("INSERT INTO t VALUES (1)");
                let text = read();
                assert_eq!(text.len(), 33, "{text:?}");
                assert_eq!(text.as_bytes()[16], b'/');
                let now = u64::from_str_radix(&text[..16], 16).expect("a txid");
                assert_eq!(now, txid + 1, "an application sees its own commit");
                txid = now;
            }
            assert_eq!(mounted.ok(&format!("stat -c %s $M/{name}-pos")), "34");
        }
        assert_eq!(mounted.ok("cat $M/.lag"), "+000000000");
        let (said, _) = mounted.sh("echo x > $M/delete.db-pos");
        assert!(said.contains("Permission denied"), "{said}");
    }
}

#[test]
fn a_replica_names_its_primary_and_refuses_writes_at_once() {
    needs_a_mount!();
    let mounted = Mounted::new("replica", Passthrough::Auto);
    let mut client = mounted.connect("a.db");
    client.rows("CREATE TABLE t (a)");
    assert_eq!(mounted.sh("cat $M/.primary").1, 1);
    mounted.store.set_role(Role::Replica { primary: Some("there".to_owned()) });
    assert_eq!(mounted.ok("cat $M/.primary"), "there");
    assert_eq!(mounted.ok("cat $M/.lag"), "+2147483647");
    let refused = Err("attempt to write a readonly database".to_owned());
    assert_eq!(client.attempt("INSERT INTO t VALUES (1)"), refused);
    assert_eq!(client.value("SELECT count(*) FROM t"), "0");
    mounted.store.set_role(Role::Primary);
    client.rows("INSERT INTO t VALUES (1)");
    assert_eq!(client.value("SELECT count(*) FROM t"), "1");
}

#[test]
fn modes_without_a_commit_point_are_refused_and_the_connection_goes_on() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("refused", passthrough);
        for wal in [false, true] {
            let name = format!("{wal}.db");
            let mut client = mounted.connect(&name);
            client.rows("CREATE TABLE t (a)");
            let refused = Err("disk I/O error".to_owned());
            if wal {
                // Out of WAL mode the change of mode itself is such a write.
                client.rows("PRAGMA journal_mode = wal");
                assert_eq!(client.attempt("PRAGMA journal_mode = memory"), refused);
            } else {
                for mode in ["memory", "off"] {
                    client.rows(&format!("PRAGMA journal_mode = {mode}"));
                    assert_eq!(client.attempt("INSERT INTO t VALUES (1)"), refused);
                }
            }
            client.close();
            let mut client = mounted.connect(&name);
            client.rows("INSERT INTO t VALUES (2)");
            assert_eq!(client.value("SELECT group_concat(a) FROM t"), "2");
            assert_eq!(client.value("PRAGMA integrity_check"), "ok");
        }
    }
}

#[test]
fn a_database_copied_or_moved_in_is_captured() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("copy", passthrough);
        let scratch = mounted.scratch();
        for (number, command) in
            ["cp $M/../x.db $M/b.db", "mv $M/../x.db $M/c.db", "cat $M/../x.db > $M/d.db"]
                .into_iter()
                .enumerate()
        {
            let mut plain = Client::open(&scratch.join("x.db"));
            plain.rows("CREATE TABLE IF NOT EXISTS t (a)");
            plain.rows(&format!("INSERT INTO t VALUES ({number})"));
            plain.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(500)));
            plain.close();
            mounted.ok(command);
            let name = ["b.db", "c.db", "d.db"][number];
            assert_eq!(mounted.txid(name), 1, "{command}: captured when it returned");
            let mut client = mounted.connect(name);
            assert_eq!(client.value("PRAGMA integrity_check"), "ok");
            client.rows("INSERT INTO t VALUES (1)");
            assert_eq!(mounted.txid(name), 2);
        }
        // Copied out again it is a database, too.
        mounted.ok("cp $M/b.db $M/../out.db");
        let mut out = Client::open(&scratch.join("out.db"));
        assert_eq!(out.value("SELECT count(*) FROM t WHERE typeof(a) = 'blob'"), "500");
    }
}

#[test]
fn a_copy_that_is_closed_before_its_end_is_captured_whole_in_the_end() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("early", passthrough);
        let mut plain = Client::open(&mounted.scratch().join("x.db"));
        plain.rows("CREATE TABLE t (a)");
        plain.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(200)));
        plain.close();
        // A descriptor inherited by a child is closed when the child ends.
        mounted.ok("python3 -c \"
import os
data = open('$M/../x.db', 'rb').read()
out = os.open('$M/a.db', os.O_CREAT | os.O_WRONLY, 0o644)
for at in range(0, len(data), 100000):
    os.pwrite(out, data[at:at + 100000], at)
    if os.fork() == 0: os._exit(0)
    os.wait()
os.pwrite(out, b'x' * 4096, len(data))
if os.fork() == 0: os._exit(0)
os.wait()
os.ftruncate(out, len(data))
\"");
        let mut client = mounted.connect("a.db");
        assert_eq!(client.value("PRAGMA integrity_check"), "ok");
        assert_eq!(client.value("SELECT count(*) FROM t"), "200");
        assert_eq!(
            mounted.txid("a.db"),
            1,
            "nothing of a half copy is captured, nor what its header does not count"
        );
        client.rows("PRAGMA journal_mode = off");
        assert!(client.attempt("INSERT INTO t VALUES (1)").is_err());
    }
}

/// The image of a database as a reader of its change sets gets it.
fn captured(mounted: &Mounted, name: &str) -> Vec<u8> {
    let db = mounted.store.database(&DbName::new(name).expect("a name")).expect("the database");
    let image = db.image(mounted.scratch().path()).expect("copy the database").expect("it has content");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &image.file, &mut bytes).expect("read the copy");
    bytes
}

#[test]
fn a_database_without_a_readable_header_is_captured_when_copied_in_and_when_written() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("encrypted", passthrough);
        // As an encrypted one looks. Its pages are of 1024 bytes, which its length does not tell.
        mounted.ok("head -c 40960 /dev/urandom > $M/../x; cp $M/../x $M/x.db; cmp $M/../x $M/x.db");
        assert_eq!(mounted.txid("x.db"), 1, "captured when cp returned");
        for (round, len) in [(2_u64, 40960), (3, 41984)] {
            mounted.ok(&format!(
                "python3 -c \"
import os, struct
db = os.open('$M/x.db', os.O_RDWR)
journal = os.open('$M/x.db-journal', os.O_CREAT | os.O_RDWR, 0o644)
head = bytes.fromhex('d9d505f920a163d7') + struct.pack('>IIIII', 0, {round}, 40, 512, 1024)
os.pwrite(journal, head.ljust(512, b'\\0'), 0)
os.pwrite(db, os.urandom(1024), 3072)
os.pwrite(db, os.urandom(1024), {len} - 1024)
os.unlink('$M/x.db-journal')
\""
            ));
            assert_eq!(mounted.txid("x.db"), round);
            assert_eq!(mounted.ok("stat -c %s $M/x.db"), len.to_string());
            let db = mounted.store.database(&DbName::new("x.db").expect("a name")).expect("the database");
            assert_eq!(db.shape().0.map(|size| size.get()), Some(1024), "as the journal states");
            assert!(captured(&mounted, "x.db") == std::fs::read(db.path(FileKind::Database)).expect("read"));
        }
        // What is no database at all stays a file.
        mounted.ok("echo hello > $M/notes.txt; cat $M/notes.txt");
        assert_eq!(mounted.txid("notes.txt"), 0);
        drop(mounted);
    }
}

#[test]
fn a_dropped_database_is_gone_and_can_be_made_again() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("drop", passthrough);
        for mode in ["delete", "wal"] {
            for round in 0..5 {
                let mut client = mounted.connect("a.db");
                client.rows(&format!("PRAGMA journal_mode = {mode}"));
                client.rows("CREATE TABLE t (a)");
                client.rows(&format!("INSERT INTO t VALUES ({round})"));
                assert_eq!(client.value("SELECT group_concat(a) FROM t"), round.to_string());
                client.close();
                mounted.ok("rm $M/a.db");
                assert!(!mounted.path("a.db").exists());
                assert_eq!(mounted.ok("ls -A $M"), ".lag");
            }
        }
    }
}

#[test]
fn who_has_a_dropped_database_open_still_reads_it() {
    needs_a_mount!();
    let mounted = Mounted::new("open", Passthrough::Auto);
    mounted.connect("a.db").rows("CREATE TABLE old (a)");
    let said = mounted.ok("exec 3< $M/a.db; rm $M/a.db; sqlite3 $M/a.db 'CREATE TABLE new (a)'; \
         grep -ac 'CREATE TABLE old' <&3; grep -ac 'CREATE TABLE new' $M/a.db");
    assert_eq!(said, "1\n1");
}

#[test]
fn subdirectories_hold_databases_of_their_own() {
    needs_a_mount!();
    let mounted = Mounted::new("dirs", Passthrough::Auto);
    mounted.ok("mkdir -p $M/t/u");
    for name in ["a.db", "t/a.db", "t/u/a.db"] {
        let mut client = mounted.connect(name);
        client.rows(&format!("CREATE TABLE t AS SELECT '{name}' AS name"));
        client.close();
    }
    for name in ["a.db", "t/a.db", "t/u/a.db"] {
        assert_eq!(mounted.connect(name).value("SELECT name FROM t"), name);
        assert_eq!(mounted.txid(name), 1);
    }
    assert_eq!(mounted.ok("cd $M; find . | LC_ALL=C sort | tr '\\n' ' '").matches("a.db-pos").count(), 3);
    let (said, code) = mounted.sh("rmdir $M/t/u");
    assert!(code != 0 && said.contains("not empty"), "{said}");
    let (said, code) = mounted.sh("rmdir $M/t/a.db");
    assert!(code != 0 && said.contains("Not a directory"), "{said}");
    let (said, code) = mounted.sh("rm -d $M/t/nothing");
    assert!(code != 0 && said.contains("No such file"), "{said}");
    let (said, code) = mounted.sh("mkdir $M/t");
    assert!(code != 0 && said.contains("File exists"), "{said}");
    mounted.ok("mkdir $M/empty && rmdir $M/empty && test ! -e $M/empty");
    mounted.ok("mv $M/t/u/a.db $M/b.db && test ! -e $M/t/u/a.db");
    assert_eq!(mounted.connect("b.db").value("SELECT name FROM t"), "t/u/a.db");
}

#[test]
fn a_directory_whose_databases_are_dropped_can_be_removed_and_made_again() {
    needs_a_mount!();
    let mounted = Mounted::new("rmdir", Passthrough::Auto);
    mounted.ok("mkdir -p $M/t/u");
    let make = |name: &str| {
        let mut client = mounted.connect(name);
        client.rows(&format!("CREATE TABLE t AS SELECT '{name}' AS name"));
        client.close();
    };
    make("t/u/a.db");
    let (said, code) = mounted.sh("rmdir $M/t/u");
    assert!(code != 0 && said.contains("not empty"), "{said}");
    mounted.ok("rm $M/t/u/a.db && rmdir $M/t/u && test ! -e $M/t/u && test -z \"$(ls $M/t)\"");
    mounted.ok("rmdir $M/t && test ! -e $M/t");
    let (said, code) = mounted.sh("touch $M/t/x.db");
    assert!(code != 0 && said.contains("No such file"), "{said}");
    mounted.ok("mkdir $M/t && test -z \"$(ls $M/t)\" && mkdir -m 700 $M/t/u");
    assert_eq!(mounted.ok("stat -c %a $M/t/u"), "700");
    let (said, code) = mounted.sh("mkdir $M/t/u");
    assert!(code != 0 && said.contains("File exists"), "{said}");
    make("t/u/a.db");
    assert_eq!(mounted.connect("t/u/a.db").value("SELECT name FROM t"), "t/u/a.db");
    assert_eq!(mounted.txid("t/u/a.db"), 3, "made, dropped, made");
}

#[test]
fn what_the_mount_cannot_do_fails_as_it_should() {
    needs_a_mount!();
    let mounted = Mounted::new("cannot", Passthrough::Auto);
    mounted.connect("a.db").rows("CREATE TABLE t (a)");
    for (script, expected) in [
        ("ln -s a.db $M/l", "Operation not permitted"),
        ("ln $M/a.db $M/l", "Operation not permitted"),
        ("mkfifo $M/p", "Operation not permitted"),
        (": > $M/.hidden", "Invalid argument"),
        (": > $M/x.db-lock", "Permission denied"),
        (": > $M/nothing.db-journal", "nonexistent"),
        ("rm $M/a.db-pos", "Permission denied"),
        ("rm $M/a.db-lock", "Permission denied"),
        ("fallocate -l 100000 $M/a.db", "not supported"),
        ("python3 -c \"import os; os.rename('$M/a.db', '$M/b.db')\"", "cross-device link"),
        ("python3 -c \"import os; os.open('$M/a.db', os.O_CREAT | os.O_EXCL)\"", "File exists"),
        ("python3 -c \"import os; os.listxattr('$M/a.db')\"", "not supported"),
        (": > $M/a.db", "Input/output error"),
    ] {
        let (said, code) = mounted.sh(script);
        assert!(code != 0 && said.contains(expected), "{script}: {code}: {said}");
    }
    assert_eq!(mounted.connect("a.db").value("PRAGMA integrity_check"), "ok");
}

#[test]
fn attributes_are_those_of_the_backing_files() {
    needs_a_mount!();
    let mounted = Mounted::new("attributes", Passthrough::Auto);
    mounted.ok("umask 027; sqlite3 $M/a.db 'CREATE TABLE t (a)'");
    assert_eq!(mounted.ok("stat -c '%a %s %h' $M/a.db"), "640 8192 1");
    mounted.ok("chmod 600 $M/a.db; touch -d '2001-02-03 04:05:06 UTC' $M/a.db");
    assert_eq!(mounted.ok("TZ=UTC stat -c '%a %y' $M/a.db"), "600 2001-02-03 04:05:06.000000000 +0000");
    mounted.ok("mkdir -m 750 $M/t; chmod 711 $M/t");
    assert_eq!(mounted.ok("stat -c '%a %F' $M/t"), "711 directory");
    mounted.ok("chmod 1777 $M");
    assert_eq!(mounted.ok("stat -c '%a' $M"), "1777");
    mounted.ok("df $M > /dev/null; stat -f -c %S $M");
    if is_root() {
        mounted.ok(&format!("chown {NOBODY}:{NOBODY} $M/a.db"));
        assert_eq!(mounted.ok("stat -c '%u %g' $M/a.db"), format!("{NOBODY} {NOBODY}"));
    }
}

#[test]
fn a_commit_over_several_databases_works() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("several", passthrough);
        let mut client = mounted.connect("a.db");
        client.rows("CREATE TABLE t (a)");
        client.rows(&format!("ATTACH '{}' AS b", mounted.path("b.db").display()));
        client.rows("CREATE TABLE b.t (a)");
        for number in 0..5 {
            client.rows("BEGIN");
            client.rows(&format!("INSERT INTO main.t VALUES ({number})"));
            client.rows(&format!("INSERT INTO b.t VALUES ({number})"));
            client.rows("COMMIT");
        }
        assert_eq!((mounted.txid("a.db"), mounted.txid("b.db")), (6, 6));
        assert_eq!(mounted.ok("ls -A $M | grep -c mj || true"), "0");
    }
}

#[test]
fn locks_of_all_kinds_exclude_between_processes() {
    needs_a_mount!();
    let mounted = Mounted::new("locks", Passthrough::Auto);
    mounted.connect("a.db").rows("CREATE TABLE t (a)");
    let said = mounted
        .ok("flock $M/a.db sh -c 'flock -n $M/a.db echo both || echo excluded'; flock -n $M/a.db echo free");
    assert_eq!(said, "excluded\nfree");
}

#[test]
fn another_user_has_the_rights_that_the_modes_give() {
    needs_a_mount!();
    if !is_root() {
        eprintln!("SKIPPED: only root can act as another user");
        return;
    }
    BOTH.into_iter().for_each(another_user);
}

fn another_user(passthrough: Passthrough) {
    let mounted = Mounted::for_all("users", passthrough);
    // Another user must be able to reach the mount at all.
    let reachable = tempfile::tempdir().expect("a directory");
    let link = reachable.path().join("m");
    std::fs::set_permissions(reachable.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    std::os::unix::fs::symlink(mounted.mount.dir(), &link).expect("a link");
    let as_nobody = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("M", mounted.mount.dir()).env("LC_ALL", "C").current_dir("/");
        command.uid(NOBODY).gid(NOBODY);
        let output = support::process::run(&mut command);
        ((output.stdout + &output.stderr).trim().to_owned(), output.status.code().unwrap_or(-1))
    };
    let (said, code) = as_nobody("stat $M > /dev/null");
    if code != 0 {
        eprintln!("SKIPPED: another user cannot reach the build directory: {said}");
        return;
    }
    mounted.ok("chmod 755 $M; umask 022; sqlite3 $M/a.db 'CREATE TABLE t (a); INSERT INTO t VALUES (1)'");
    mounted.ok("cp $M/a.db $M/../secret.db; cp $M/../secret.db $M/secret.db; chmod 600 $M/secret.db");
    assert_eq!(as_nobody("sqlite3 $M/a.db 'SELECT a FROM t'"), ("1".to_owned(), 0));
    for (script, expected) in [
        ("sqlite3 $M/a.db 'INSERT INTO t VALUES (2)'", "readonly"),
        ("cat $M/secret.db", "Permission denied"),
        ("rm -f $M/a.db", "Permission denied"),
        (": > $M/mine.db", "Permission denied"),
        ("mkdir $M/mine", "Permission denied"),
        ("chmod 777 $M/a.db", "Operation not permitted"),
        ("chown 1 $M/a.db", "Operation not permitted"),
        ("truncate -s 0 $M/a.db", "Permission denied"),
        ("touch -d 2001-01-01 $M/a.db", "ermi"),
    ] {
        let (said, code) = as_nobody(script);
        assert!(code != 0 && said.contains(expected), "{script}: {code}: {said}");
    }
    mounted.ok("chmod 1777 $M");
    let (said, code) =
        as_nobody("umask 077; sqlite3 $M/mine.db 'CREATE TABLE t (a); INSERT INTO t VALUES (3)'");
    assert_eq!(code, 0, "{said}");
    assert_eq!(mounted.ok("stat -c '%u %g %a' $M/mine.db"), format!("{NOBODY} {NOBODY} 600"));
    for mode in ["delete", "wal", "persist"] {
        let script = format!("sqlite3 $M/mine.db 'PRAGMA journal_mode={mode}; INSERT INTO t VALUES (4)'");
        assert_eq!(as_nobody(&script), (mode.to_owned(), 0));
    }
    let (said, code) = as_nobody("rm -f $M/a.db");
    assert!(code != 0 && said.contains("Operation not permitted"), "the sticky bit: {said}");
    assert_eq!(as_nobody("rm $M/mine.db"), (String::new(), 0));
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    needs_a_mount!();
    if !is_root() {
        eprintln!("SKIPPED: only root can act as another user");
        return;
    }
    let mounted = Mounted::new("private", Passthrough::Auto);
    let mut command = Command::new("stat");
    command.arg(mounted.path(".lag")).current_dir("/").uid(NOBODY).gid(NOBODY);
    assert_ne!(support::process::run(&mut command).code(), Some(0));
}

#[test]
fn many_writers_of_many_databases_do_not_wait_for_each_other_for_ever() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("many", passthrough);
        let script = "for i in $(seq 12); do (\
             mode=$(test $((i % 2)) = 0 && echo wal || echo delete); \
             echo \"PRAGMA journal_mode=$mode; PRAGMA synchronous=full; CREATE TABLE t (a);\" > $M/../$i.sql; \
             for n in $(seq 60); do echo 'INSERT INTO t VALUES (randomblob(2000));' >> $M/../$i.sql; done; \
             echo 'SELECT count(*) FROM t;' >> $M/../$i.sql; \
             sqlite3 $M/$i.db < $M/../$i.sql | tail -1) & done; wait";
        assert_eq!(mounted.ok(script), ["60"; 12].join("\n"));
        for number in 1..=12 {
            let name = format!("{number}.db");
            wait_for("all to be captured", || (mounted.txid(&name) >= 61).then_some(()));
        }
    }
}

#[test]
fn connections_that_come_and_go_lose_nothing() {
    needs_a_mount!();
    let script = "\
import sqlite3, sys
for n in range(25):
    while True:
        try:
            db = sqlite3.connect(sys.argv[1] + '/a.db', isolation_level=None, timeout=100)
            db.execute('INSERT INTO t VALUES (1)')
            break
        except sqlite3.OperationalError as error:
            if 'locked' not in str(error): raise
        finally:
            db.close()
";
    for passthrough in BOTH {
        let mounted = Mounted::new("come-and-go", passthrough);
        let mut client = mounted.connect("a.db");
        client.rows("PRAGMA journal_mode = wal");
        client.rows("CREATE TABLE t (a)");
        client.close();
        // The last to close removes WAL and wal-index, the next makes them anew.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut command = Command::new("python3");
                    let output = support::process::run(command.args(["-c", script]).arg(mounted.mount.dir()));
                    assert_eq!(output.code(), Some(0), "{}", output.stderr);
                });
            }
        });
        let mut client = mounted.connect("a.db");
        assert_eq!(client.value("SELECT count(*) FROM t"), "100");
        assert_eq!(client.value("PRAGMA integrity_check"), "ok");
        wait_for("every transaction to be captured", || (mounted.txid("a.db") >= 101).then_some(()));
    }
}

#[test]
fn a_killed_writer_leaves_nothing_that_others_wait_for() {
    needs_a_mount!();
    for passthrough in BOTH {
        let mounted = Mounted::new("killed", passthrough);
        for mode in ["delete", "wal"] {
            let name = format!("{mode}.db");
            let mut one = mounted.connect(&name);
            one.rows(&format!("PRAGMA journal_mode = {mode}"));
            one.rows("CREATE TABLE t (a)");
            let mut two = mounted.connect(&name);
            for _ in 0..5 {
                one.rows("PRAGMA cache_size = 5");
                one.rows("BEGIN");
                one.rows(&format!("INSERT INTO t SELECT randomblob(3000) FROM {}", numbers(50)));
                one.kill();
                wait_for("the lock to go", || two.attempt("INSERT INTO t VALUES (1)").ok());
                one = mounted.connect(&name);
            }
            assert_eq!(two.value("SELECT count(*) FROM t"), "5");
            assert_eq!(two.value("PRAGMA integrity_check"), "ok");
        }
    }
}

#[test]
fn an_unmount_waits_for_nobody_longer_than_it_is_told() {
    needs_a_mount!();
    let mounted = Mounted::new("busy", Passthrough::Auto);
    let mut client = mounted.connect("a.db");
    client.rows("PRAGMA journal_mode = wal");
    client.rows("CREATE TABLE t (a)");
    let unmounted = mounted.mount.unmount(Duration::from_millis(100)).expect("unmount");
    assert_eq!(unmounted, Unmounted::Forced);
    mounted.ended.recv_timeout(END).expect("the mount ends");
    assert!(client.attempt("INSERT INTO t VALUES (1)").is_err(), "the application sees an error");
    assert_eq!(mounted.ok("ls -A $M"), "");
    client.kill();
    let again = Mounted::mount(mounted.scratch(), Arc::clone(&mounted.store), Passthrough::Auto, false);
    let again = again.unwrap_or_else(|error| panic!("{error}"));
    // What failed may have been committed: the fsync failed, after the write.
    let rows = again.connect("a.db").value("SELECT count(*) FROM t");
    assert!(rows == "0" || rows == "1", "{rows}");
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    needs_a_mount!();
    let mounted = Mounted::new("outside", Passthrough::Auto);
    let mut client = mounted.connect("a.db");
    client.rows("PRAGMA journal_mode = wal");
    client.rows("CREATE TABLE t (a)");
    client.close();
    // The daemon's own descriptor is closed some time after the application's.
    wait_for("umount", || (mounted.sh("umount $M || fusermount3 -u $M").1 == 0).then_some(()));
    mounted.ended.recv_timeout(END).expect("the mount ends");
    assert_eq!(mounted.mount.unmount(Duration::ZERO).expect("unmount"), Unmounted::Before);
}

#[test]
fn a_panic_unmounts() {
    needs_a_mount!();
    let mounted = Mounted::new("panic", Passthrough::Auto);
    let dir = mounted.mount.dir().to_owned();
    let died = std::thread::spawn(move || {
        mounted.ok("test -e $M/.lag");
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(died.join().is_err());
    assert_ne!(shell("mountpoint -q $M", &dir).1, 0);
    let _ = std::fs::remove_dir_all(dir.parent().expect("the scratch directory"));
}

#[test]
fn a_live_mount_is_not_touched() {
    needs_a_mount!();
    let mounted = Mounted::new("live", Passthrough::Auto);
    mounted.connect("a.db").rows("CREATE TABLE t (a)");
    let other = Scratch::new("live-other");
    std::fs::create_dir(other.join("link")).expect("a directory");
    let second = Mounted::mount(mounted.scratch(), open_store(&other), Passthrough::Auto, false);
    match second {
        Err(MountError::Occupied { kind, .. }) => assert_eq!(kind, "fuse.litefs"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("mounted over a live mount"),
    }
    assert_eq!(mounted.connect("a.db").value("SELECT count(*) FROM t"), "0");
}

/// Not a test of its own: the daemon that [`a_killed_daemon_leaves_nothing_that_blocks_a_restart`]
/// kills.
#[test]
fn daemon_of_another_test() {
    let Ok(dir) = std::env::var("LITEFS_TEST_DAEMON") else { return };
    let scratch = Arc::new(Scratch::at(dir.into()));
    let mounted = Mounted::mount(Arc::clone(&scratch), open_store(&scratch), Passthrough::Auto, false);
    let mounted = mounted.unwrap_or_else(|error| panic!("{error}"));
    println!("\nmounted {}", mounted.mount.dir().display());
    let _ = mounted.ended.recv();
}

#[test]
fn a_killed_daemon_leaves_nothing_that_blocks_a_restart() {
    needs_a_mount!();
    let scratch = Arc::new(Scratch::new("stale"));
    for round in 1..=3 {
        let mut daemon = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "daemon_of_another_test", "--nocapture"])
            .env("LITEFS_TEST_DAEMON", scratch.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the daemon");
        let output = std::io::BufReader::new(daemon.stdout.take().expect("its output"));
        let up =
            std::io::BufRead::lines(output).map_while(Result::ok).any(|line| line.starts_with("mounted "));
        assert!(up, "the daemon did not start in round {round}");
        let mut client = Client::open(&scratch.join("mnt/a.db"));
        client.rows("PRAGMA journal_mode = wal");
        client.rows("CREATE TABLE IF NOT EXISTS t (a)");
        client.rows("INSERT INTO t VALUES (1)");
        daemon.kill().expect("kill");
        daemon.wait().expect("it ends");
        assert!(client.attempt("VACUUM").is_err(), "the application sees an error");
        client.kill();
        // The kernel may answer a stat from its cache; a statfs always asks.
        let (said, _) = shell("stat -f $M/mnt", scratch.path());
        assert!(said.contains("not connected"), "{said}");
    }
    let mounted = Mounted::mount(Arc::clone(&scratch), open_store(&scratch), Passthrough::Auto, false);
    let mounted = mounted.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(mounted.connect("a.db").value("SELECT count(*) FROM t"), "3");
}
