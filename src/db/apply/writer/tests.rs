//! The writer against SQLite itself, on plain files: the same bytes, and connections
//! that read beside it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::locks::{DMS, SHARED, WAL_WRITE};
use super::*;
use crate::sqlite::wal::{Authority, FRAME_HEADER_LEN, Transaction, next_transaction};

/// A plain file; its locks are of the open file, so that they exclude SQLite's in the
/// same process.
struct Plain(File);

impl Plain {
    fn open(path: &Path) -> Plain {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Plain(file.expect("open"))
    }
}

impl OwnFile for Plain {
    fn is_linked(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = super::super::super::database::read_at_most(&self.0, &mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, writes: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        writes.iter().try_for_each(|(offset, bytes)| self.0.write_all_at(bytes, *offset))
    }

    fn try_lock(&self, to: LockTo, bytes: Range<u64>) -> io::Result<bool> {
        // SAFETY: `flock` is a plain C struct for which zeros are a valid value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        let kind = match to {
            LockTo::Shared => libc::F_RDLCK,
            LockTo::Exclusive => libc::F_WRLCK,
            LockTo::Free => libc::F_UNLCK,
        };
        lock.l_type = kind as libc::c_short;
        lock.l_start = i64::try_from(bytes.start).expect("small");
        lock.l_len = i64::try_from(bytes.end - bytes.start).expect("small");
        // SAFETY: the call reads `lock`, which lives until it returns.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
            0 => Ok(true),
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut path = db.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A database in WAL mode whose WAL keeps every transaction.
struct Source {
    path: PathBuf,
    db: Connection,
    wal: File,
    cursor: Option<(WalHeader, Cursor)>,
}

impl Source {
    fn new(dir: &Path, page_size: u32) -> Source {
        let path = dir.join("source.db");
        let db = Connection::open(&path).expect("open");
        db.execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0;
             PRAGMA cache_size = -200000; PRAGMA cache_spill = off;
             CREATE TABLE t (a); CREATE TABLE m (n); INSERT INTO m VALUES (0);
             PRAGMA wal_checkpoint(TRUNCATE);"
        ))
        .expect("a schema");
        // Open for good: closing it would drop SQLite's locks in this process.
        let wal = File::open(beside(&path, "-wal")).expect("open");
        Source { path, db, wal, cursor: None }
    }

    fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The next transaction of the WAL.
    fn next(&mut self) -> Option<Transaction> {
        if self.cursor.is_none() {
            let header = WalHeader::read(&self.wal).expect("read")?;
            self.cursor = Some((header, header.start()));
        }
        let (header, cursor) = self.cursor.as_mut()?;
        let next = next_transaction(&self.wal, header, *cursor, Authority::Chain).expect("scan")?;
        *cursor = next.end;
        Some(next)
    }

    /// Writes its next transactions with `writer`.
    fn feed(&mut self, writer: &mut Writer) -> u32 {
        let mut count = 0;
        while let Some(transaction) = self.next() {
            let pages: Vec<Pgno> = transaction.pages.iter().map(|(pgno, _)| *pgno).collect();
            let offset = |pgno: Pgno| {
                let at = transaction.pages.binary_search_by_key(&pgno, |(pgno, _)| *pgno);
                transaction.pages[at.expect("a page of it")].1
            };
            let read = |pgno: Pgno, page: &mut [u8]| self.wal.read_exact_at(page, offset(pgno));
            writer.restart().expect("restart");
            writer.append(&pages, transaction.commit, read).expect("append");
            writer.publish(transaction.commit).expect("publish");
            count += 1;
        }
        count
    }
}

/// A writer of the WAL of `db`, with the locks that the daemon holds.
fn writer(db: &Path, page_size: u32) -> (Writer, Plain) {
    let (database, wal) = (Plain::open(db), Plain::open(&beside(db, "-wal")));
    let shm = Plain::open(&beside(db, "-shm"));
    assert!(database.try_lock(LockTo::Shared, SHARED).expect("lock"));
    assert!(shm.try_lock(LockTo::Shared, DMS).expect("lock"));
    assert!(shm.try_lock(LockTo::Exclusive, WAL_WRITE).expect("lock"));
    let size = PageSize::new(page_size).expect("a page size");
    let writer = Writer::make((Box::new(wal), Box::new(shm)), size, None, &[]).expect("make");
    (writer, database)
}

fn checkpoint(writer: &Writer, database: &Plain, wal: &File) {
    let header = writer.generation();
    let size = header.page_size;
    let copied: io::Result<()> = writer.checkpoint(|copying| {
        let mut page = vec![0; size.len()];
        for (pgno, frame) in copying.frames {
            wal.read_exact_at(&mut page, header.frame_offset(frame) + FRAME_HEADER_LEN as u64)?;
            database.0.write_all_at(&page, size.offset_of(pgno))?;
        }
        match copying.pages {
            Some(pages) => database.0.set_len(u64::from(pages) * u64::from(size.get())),
            None => Ok(()),
        }
    });
    copied.expect("checkpoint");
}

#[test]
fn wal_and_wal_index_are_what_sqlite_writes() {
    for page_size in [512, 4096, 65536] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut source = Source::new(dir.path(), page_size);
        for number in 0..30 {
            source
                .run(&format!("INSERT INTO t VALUES (randomblob({})); UPDATE m SET n = n + 1", number * 300));
        }
        source.run("DELETE FROM t WHERE rowid % 3 = 0; VACUUM");
        if page_size == 512 {
            source.run(
                "INSERT INTO t SELECT randomblob(450) FROM (WITH RECURSIVE n(i) AS
                 (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) SELECT i FROM n)",
            );
        }
        let ours = dir.path().join("ours.db");
        let (mut writer, _database) = writer(&ours, page_size);
        let header = WalHeader::read(&source.wal).expect("read").expect("a header");
        writer.next = (header.checkpoint_seq, header.salt);
        source.feed(&mut writer);
        let read = |db: &Path, suffix| fs::read(beside(db, suffix)).expect("read");
        assert!(read(&ours, "-wal") == read(&source.path, "-wal"), "{page_size}");
        let (left, right) = (read(&ours, "-shm"), read(&source.path, "-shm"));
        let parse = |bytes: &[u8]| {
            let index = WalIndex::parse(bytes).expect("usable");
            (index.frames, index.pages, index.frame_sum, index.salt, index.page_size)
        };
        assert_eq!(parse(&left), parse(&right), "{page_size}");
        assert_eq!(left.len(), right.len(), "{page_size}");
        // What follows a block's last entry is of no meaning, and zero in both here.
        assert!(left[wal_index::LEN..] == right[wal_index::LEN..], "{page_size}");
    }
}

#[test]
fn connections_read_beside_the_writer() {
    for page_size in [512, 4096, 65536] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut source = Source::new(dir.path(), page_size);
        let ours = dir.path().join("ours.db");
        fs::copy(&source.path, &ours).expect("copy");
        let (mut writer, database) = writer(&ours, page_size);
        let wal = File::open(beside(&ours, "-wal")).expect("open");
        let (now, held) = (Connection::open(&ours).expect("open"), Connection::open(&ours).expect("open"));
        for db in [&now, &held] {
            db.busy_timeout(std::time::Duration::ZERO).expect("set");
        }
        let count = |db: &Connection| -> i64 {
            db.query_row("SELECT n FROM m", [], |row| row.get(0)).expect("a number")
        };
        let mut restarts = 0;
        for round in 0..60 {
            if round % 20 == 5 {
                held.execute_batch("BEGIN").expect("begin");
                assert_eq!(count(&held), round);
            }
            source.run(&format!(
                "BEGIN; INSERT INTO t VALUES (randomblob({})); UPDATE m SET n = n + 1; COMMIT",
                (round * 997) % 9000
            ));
            if round == 30 {
                source.run("DELETE FROM t WHERE rowid % 2 = 0");
                source.run("VACUUM");
            }
            if round == 40 {
                source.run(
                    "INSERT INTO t SELECT randomblob(400) FROM (WITH RECURSIVE n(i) AS
                     (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6000) SELECT i FROM n)",
                );
            }
            let before = writer.frames();
            source.feed(&mut writer);
            restarts += u32::from(writer.frames() < before);
            assert_eq!(count(&now), round + 1);
            if round % 20 > 5 && round % 20 < 12 {
                assert_eq!(count(&held), round / 20 * 20 + 5, "a snapshot moved");
            }
            if round % 20 == 12 {
                held.execute_batch("COMMIT").expect("commit");
                assert_eq!(count(&held), round + 1);
            }
            if round % 7 == 0 {
                checkpoint(&writer, &database, &wal);
            }
            let busy = now.execute_batch("UPDATE m SET n = 0").expect_err("locked");
            assert_eq!(busy.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
        }
        assert!(restarts > 0, "the WAL began anew at least once");
        let sound: String = now.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!(sound, "ok");
        drop((now, held));
        checkpoint(&writer, &database, &wal);
        source.run("PRAGMA wal_checkpoint(TRUNCATE)");
        assert!(fs::read(&ours).expect("read") == fs::read(&source.path).expect("read"), "{page_size}");
    }
}

#[test]
fn a_writer_goes_on_where_another_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut source = Source::new(dir.path(), 4096);
    let ours = dir.path().join("ours.db");
    fs::copy(&source.path, &ours).expect("copy");
    let (mut first, database) = writer(&ours, 4096);
    let reader = Connection::open(&ours).expect("open");
    let count = || -> i64 { reader.query_row("SELECT n FROM m", [], |row| row.get(0)).expect("a number") };
    for number in 1..=20 {
        source.run("INSERT INTO t VALUES (randomblob(3000)); UPDATE m SET n = n + 1");
        source.feed(&mut first);
        assert_eq!(count(), number);
        // The next one dies at some step of a transaction that never was.
        let read = |_: Pgno, page: &mut [u8]| -> io::Result<()> {
            page.fill(7);
            Ok(())
        };
        let pages: Vec<Pgno> = (1..=number as u32).filter_map(Pgno::new).collect();
        first.append(&pages, 9, read).expect("append");
        let index = first.marks().expect("the wal-index");
        let (header, frames) = (first.generation(), first.frames());
        let held: Vec<Pgno> = (1..=frames).filter_map(|frame| first.tables.page(frame)).collect();
        let (wal, shm) = (first.wal, first.shm);
        first = Writer::take_over((wal, shm), index, Some(header), &held).expect("take over");
        assert_eq!(count(), number);
    }
    drop((reader, database));
}
