//! Readers that check what they see: no half of a transaction, no way back, no snapshot
//! that moves. Each in a process of its own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::PATIENCE;
use super::mounted::Client;
use super::worker::{Sqlite, Worker};

/// How a reader goes about it.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// One statement after the other.
    Loop,
    /// Long transactions in which nothing may move.
    Long,
    /// A new connection each time.
    Reopen,
}

/// How far it is, and what is wrong with it.
pub const STATE: &str = "SELECT (SELECT n FROM m), (SELECT n FROM m) - (SELECT count(*) FROM t), \
                     (SELECT total FROM m) - (SELECT coalesce(sum(length(a)), 0) FROM t)";

/// Reads until told to stop; how often it did.
pub fn read(path: &Path, habit: Habit, stop: &AtomicBool) -> u32 {
    let mut worker = Worker::start(Sqlite::System);
    let open = |worker: &mut Worker| {
        let opened = worker.open(path, PATIENCE).expect("the worker lives");
        opened.unwrap_or_else(|failure| panic!("open: {failure:?}"));
    };
    open(&mut worker);
    let (mut last, mut count) = (0_i64, 0);
    let ask = |worker: &mut Worker, sql: &str| {
        worker.query(sql).expect("the worker lives").unwrap_or_else(|failure| panic!("{sql}: {failure:?}"))
    };
    loop {
        // At least once after the last transaction.
        let last_time = stop.load(Ordering::Acquire);
        if matches!(habit, Habit::Reopen) {
            worker.close().expect("the worker lives");
            open(&mut worker);
        }
        if matches!(habit, Habit::Long) {
            ask(&mut worker, "BEGIN");
        }
        let rows = ask(&mut worker, STATE);
        let [now, count_off, total_off] = &rows[0][..] else { panic!("three values") };
        assert_eq!((count_off.as_str(), total_off.as_str()), ("0", "0"), "half of a transaction");
        let now: i64 = now.parse().expect("a number");
        assert!(now >= last, "went back from {last} to {now}");
        last = now;
        if matches!(habit, Habit::Long) {
            for _ in 0..10 {
                assert_eq!(ask(&mut worker, STATE), rows, "a snapshot moved");
            }
            assert_eq!(ask(&mut worker, "PRAGMA integrity_check")[0][0], "ok");
            ask(&mut worker, "COMMIT");
        }
        count += 1;
        if last_time {
            return count;
        }
    }
}

/// What [`grow`] writes to.
pub const SCHEMA: &str = "CREATE TABLE t (a); CREATE TABLE m (n, total); INSERT INTO m VALUES (0, 0)";

/// Adds a row; `n` only grows, so that going back shows.
pub fn grow(client: &mut Client, len: u32) {
    client.rows("BEGIN");
    client.rows(&format!("INSERT INTO t VALUES (randomblob({len}))"));
    client.rows(&format!("UPDATE m SET n = n + 1, total = total + {len}"));
    client.rows("COMMIT");
}

/// Adds rows in one transaction.
pub fn many(client: &mut Client, rows: u32, len: u32) {
    client.rows("BEGIN");
    client.rows(&format!(
        "INSERT INTO t SELECT randomblob({len}) FROM \
         (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n)"
    ));
    client.rows(&format!("UPDATE m SET n = n + {rows}, total = total + {rows} * {len}"));
    client.rows("COMMIT");
}
