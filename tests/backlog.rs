//! The archive out of reach: writes go on until the backlog is full, are refused then, and
//! go on by themselves when the archive is back; nothing is lost.

mod support;

use std::process::Command;

use support::mounted::Client;
use support::{Node, Scratch, Settings, can_mount, process, wait_for};

/// Journal modes, and what SQLite says to a writer when the backlog is full. A WAL that
/// passes the daemon by cannot be refused a write: the daemon holds its lock.
fn modes(passthrough: bool) -> [(&'static str, &'static str); 4] {
    let full = "database or disk is full";
    let wal = if passthrough { "database is locked" } else { full };
    [("delete", full), ("truncate", full), ("persist", full), ("wal", wal)]
}

/// What a failed insert says; `None` if it succeeded.
fn insert(client: &mut Client) -> Option<String> {
    client.attempt("INSERT INTO t VALUES (randomblob(20000))").err()
}

#[test]
fn a_full_backlog_refuses_writes_and_drains_by_itself() {
    if !can_mount() {
        return;
    }
    for passthrough in [true, false] {
        let scratch = Scratch::new("backlog");
        let storage = "backlog = \"500KB\"".to_owned();
        let mut node = Node::new(scratch.path(), Settings { passthrough, storage, ..Settings::default() });
        node.start();
        let mut clients: Vec<_> = modes(passthrough)
            .into_iter()
            .map(|(mode, expected)| {
                let mut client = Client::open(&node.file(&format!("{mode}.db")));
                assert_eq!(client.value(&format!("PRAGMA journal_mode = {mode}")), mode);
                client.rows("CREATE TABLE t (a)");
                (mode, expected, client, 0_u32)
            })
            .collect();
        node.wait_archived(&["delete.db", "truncate.db", "persist.db", "wal.db"]);
        // The archive is not there any more.
        let (archive, away) = (node.archive().to_owned(), scratch.join("away"));
        std::fs::rename(&archive, &away).expect("take the archive away");
        std::fs::write(&archive, "not a directory").expect("put a file in its place");
        for (mode, expected, client, rows) in &mut clients {
            let text = wait_for("the backlog to be full", || {
                let said = insert(client);
                *rows += u32::from(said.is_none());
                said
            });
            assert!(text.contains(*expected), "{mode}: {text}");
            // Reads go on, on the same connection.
            assert_eq!(client.value("SELECT count(*) FROM t"), rows.to_string(), "{mode}");
            assert!(insert(client).is_some(), "{mode}: there is room again");
        }
        let status = node.status();
        let archive_status = &status["archive"];
        assert_eq!(archive_status["full"], true, "{status}");
        assert!(archive_status["unarchivedBytes"].as_u64() >= Some(500_000), "{status}");
        assert!(archive_status["oldest"].is_number(), "{status}");
        assert_eq!(node.get("/health").status, 503);
        let metrics = String::from_utf8_lossy(&node.get("/metrics").body).into_owned();
        assert!(metrics.contains("\nlitefs_archive_backlog_full 1\n"), "{metrics}");

        std::fs::remove_file(&archive).expect("remove the file");
        std::fs::rename(&away, &archive).expect("put the archive back");
        for (mode, _, client, rows) in &mut clients {
            wait_for("writes to go on", || insert(client).is_none().then_some(()));
            *rows += 1;
            assert_eq!(client.value("SELECT count(*) FROM t"), rows.to_string(), "{mode}");
            assert_eq!(client.value("PRAGMA integrity_check"), "ok", "{mode}");
        }
        node.wait_archived(&["delete.db", "truncate.db", "persist.db", "wal.db"]);
        assert_eq!(node.get("/health").status, 200);
        let log = node.log();
        // Once for each change of state (it may be full again while it drains), not for each try.
        let said = |what: &str| log.matches(what).count();
        let full = said("the backlog is full: writes are refused");
        assert_eq!(full, said("the backlog has room again"), "{log}");
        assert!(full >= 1 && full < said("refused a write to database"), "{log}");
        assert_eq!(log.matches("the archive cannot be written").count(), 1, "{log}");
        let counts: Vec<_> = clients
            .into_iter()
            .map(|(mode, _, client, rows)| {
                client.close();
                (mode, rows)
            })
            .collect();
        node.stop();
        let mut verify = Command::new(env!("CARGO_BIN_EXE_litefs"));
        let verify = process::run(verify.args(["verify", "--deep", "--config"]).arg(node.config()));
        assert_eq!(verify.code(), Some(0), "{}{}", verify.stdout, verify.stderr);
        // Everything that was acknowledged comes back onto an empty disk.
        node.wipe_data();
        node.start();
        for (mode, rows) in counts {
            let mut client = Client::open(&node.file(&format!("{mode}.db")));
            assert_eq!(client.value("SELECT count(*) FROM t"), rows.to_string(), "{mode}");
        }
        node.stop();
    }
}
