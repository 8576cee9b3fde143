//! Transactions of all kinds, numbered, from a seed. Must not know litefs.

use rusqlite::Connection;

/// A small generator of numbers (splitmix64): the same on every machine.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Other seeds than the usual ones, for a longer search: `PROOF_SEED=n`.
pub fn seed_offset() -> u64 {
    std::env::var("PROOF_SEED").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1000
}

/// How a connection is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub journal: &'static str,
    pub synchronous: &'static str,
    pub page_size: u32,
    pub auto_vacuum: u32,
    pub exclusive: bool,
}

impl Setup {
    /// Rollback or WAL with this durability.
    pub const fn new(journal: &'static str, synchronous: &'static str) -> Setup {
        Setup { journal, synchronous, page_size: 1024, auto_vacuum: 0, exclusive: false }
    }

    /// Prepares a connection; makes the tables the first time.
    pub fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let locking = if self.exclusive { "EXCLUSIVE" } else { "NORMAL" };
        connection.busy_timeout(std::time::Duration::from_secs(60))?;
        connection.execute_batch(&format!(
            "PRAGMA locking_mode = {locking}; PRAGMA page_size = {}; PRAGMA auto_vacuum = {}; \
             PRAGMA synchronous = {}; PRAGMA cache_size = 10; PRAGMA cache_spill = 5; \
             PRAGMA wal_autocheckpoint = 12;",
            self.page_size, self.auto_vacuum, self.synchronous
        ))?;
        connection.pragma_update_and_check(None, "journal_mode", self.journal, |row| {
            row.get::<_, String>(0).map(drop)
        })?;
        connection.execute_batch(
            "BEGIN IMMEDIATE; \
             CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, n INTEGER); \
             INSERT OR IGNORE INTO state VALUES (1, 0); \
             CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, k INTEGER, v BLOB); \
             CREATE INDEX IF NOT EXISTS tk ON t (k); \
             COMMIT;",
        )
    }
}

/// The number of the last transaction.
pub fn number(connection: &Connection) -> rusqlite::Result<u64> {
    let there: u32 =
        connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'state'", [], |row| row.get(0))?;
    if there == 0 {
        return Ok(0);
    }
    connection
        .query_row("SELECT coalesce(max(n), 0) FROM state", [], |row| row.get::<_, i64>(0).map(|n| n as u64))
}

/// Commits transaction `n`, what it does being random; what comes before and after it
/// may change nothing. Returns once it is committed.
pub fn transaction(connection: &Connection, n: u64, random: &mut Random) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let result = change(connection, n, random).and_then(|()| connection.execute_batch("COMMIT"));
    if result.is_err() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    result
}

fn change(connection: &Connection, n: u64, random: &mut Random) -> rusqlite::Result<()> {
    connection.execute("UPDATE state SET n = ?1", [n as i64])?;
    match random.below(7) {
        0 => insert(connection, 1, random),
        1 => insert(connection, 3 + random.below(20), random),
        2 => {
            let part = random.below(4);
            connection.execute("DELETE FROM t WHERE id % 4 = ?1", [part as i64]).map(drop)
        }
        3 => {
            connection.execute_batch("SAVEPOINT a")?;
            insert(connection, 10 + random.below(20), random)?;
            connection.execute_batch("ROLLBACK TO a; RELEASE a")?;
            insert(connection, 1, random)
        }
        4 => connection.execute_batch("DROP TABLE IF EXISTS u; CREATE TABLE u AS SELECT * FROM t LIMIT 20;"),
        5 => connection
            .execute("UPDATE t SET v = randomblob(length(v)), k = k + 1 WHERE id % 3 = 0", [])
            .map(drop),
        _ => Ok(()),
    }
}

fn insert(connection: &Connection, rows: u64, random: &mut Random) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT INTO t (k, v) VALUES (?1, randomblob(?2))")?;
    for _ in 0..rows {
        statement.execute([random.below(1000) as i64, 100 + random.below(900) as i64])?;
    }
    Ok(())
}

/// A transaction that spills into the database file and is taken back.
pub fn rolled_back(connection: &Connection, random: &mut Random) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let result = insert(connection, 30, random);
    connection.execute_batch("ROLLBACK")?;
    result
}
