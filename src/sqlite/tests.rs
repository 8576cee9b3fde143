//! The parsers against what SQLite itself writes and recovers. Must not depend on
//! the version of SQLite beyond its file formats.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::freelist::{self, FreelistError};
use super::header::{Header, JournalMode, is_database};
use super::journal::{self, Playback};
use super::wal::{Authority, Frames, Transaction, WalError, WalHeader, next_transaction};
use super::wal_index::{self, Unusable, WalIndex};
use crate::words::{PageSize, Pgno};

fn size(bytes: u32) -> PageSize {
    PageSize::new(bytes).expect("a page size")
}

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).expect("not zero")
}

/// A database of a few hundred rows.
fn create(path: &Path, page_size: u32, mode: &str) -> Connection {
    let db = Connection::open(path).expect("opens");
    db.execute_batch(&format!(
        "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b BLOB);"
    ))
    .expect("creates");
    fill(&db, 1, 300);
    db
}

fn fill(db: &Connection, from: u32, to: u32) {
    db.execute_batch(&format!(
        "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i+1 FROM n WHERE i<{to})
         INSERT OR REPLACE INTO t SELECT i, 'row '||i||hex(zeroblob(i%90)), zeroblob(i*7%600) FROM n;"
    ))
    .expect("fills");
}

#[test]
fn header_of_a_real_database_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    for page_size in [512, 4096, 65536] {
        for (mode, expected) in [("delete", JournalMode::Rollback), ("wal", JournalMode::Wal)] {
            let path = dir.path().join(format!("{page_size}-{mode}"));
            drop(create(&path, page_size, mode));
            let bytes = fs::read(&path).expect("reads");
            let header = Header::parse(&bytes).expect("a database");
            assert!(is_database(&bytes));
            assert_eq!((header.page_size.get(), header.journal_mode()), (page_size, expected));
            assert_eq!(
                header.pages().map(|pages| pages as usize * header.page_size.len()),
                Some(bytes.len())
            );
            assert_eq!(header.usable(), page_size as usize);
        }
    }
}

#[test]
fn what_is_no_database_header_is_refused() {
    let mut good = b"SQLite format 3\0".to_vec();
    good.extend([0x10, 0x00, 1, 1, 0]);
    good.resize(100, 0);
    assert!(is_database(&good));
    assert!(!is_database(&good[..99]));
    assert!(!is_database(b""));
    for (at, value) in [(0, b'X'), (15, 1), (16, 0x11), (17, 1), (16, 0)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(!is_database(&bad), "byte {at} = {value}");
    }
}

#[test]
fn freelist_of_a_real_database_is_walked() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let db = create(&path, 512, "delete");
    fill(&db, 301, 3000);
    db.execute_batch("DELETE FROM t WHERE id > 20").expect("deletes");
    let count: u32 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).expect("counts");
    let bytes = fs::read(&path).expect("reads");
    let header = Header::parse(&bytes).expect("a database");
    let pages = (bytes.len() / 512) as u32;
    let read = |bytes: &[u8], page: Pgno, into: &mut [u8]| {
        let at = size(512).offset_of(page) as usize;
        into.copy_from_slice(&bytes[at..at + 512]);
        Ok(())
    };
    let list = freelist::walk(&header, pages, |page, into| read(&bytes, page, into)).expect("sound");
    assert!(list.trunks.len() > 3, "several trunks: {}", list.trunks.len());
    assert_eq!((list.trunks.len() + list.leaves.len()) as u32, count);
    assert!(list.is_leaf(list.leaves[0]) && !list.is_leaf(list.trunks[0]));

    // The last trunk points to the first: a cycle.
    let mut cyclic = bytes.clone();
    let last = size(512).offset_of(*list.trunks.last().expect("trunks")) as usize;
    cyclic[last..last + 4].copy_from_slice(&list.trunks[0].get().to_be_bytes());
    let found = freelist::walk(&header, pages, |page, into| read(&cyclic, page, into));
    assert!(matches!(found, Err(FreelistError::Damaged { .. })));
    assert!(freelist::walk(&header, 2, |page, into| read(&bytes, page, into)).is_err());
}

/// A database and its journal as they lie on disk in the middle of a transaction
/// that has spilled: copies, as after a crash.
fn crash(dir: &Path, page_size: u32, mode: &str, sync: &str) -> (Vec<u8>, Vec<u8>) {
    let path = dir.join(format!("live-{page_size}-{mode}-{sync}"));
    let db = create(&path, page_size, mode);
    fill(&db, 301, 3000);
    db.execute_batch(&format!("PRAGMA synchronous={sync}; PRAGMA cache_size=5; BEGIN;")).expect("begins");
    for round in 0..4 {
        db.execute_batch(&format!("UPDATE t SET a=a||'{round}' WHERE id % 3 = {}", round % 3))
            .expect("updates");
        fill(&db, 3001 + round * 200, 3200 + round * 200);
    }
    let journal = fs::read(format!("{}-journal", path.display())).expect("a journal");
    (fs::read(&path).expect("reads"), journal)
}

/// The database after SQLite has recovered it.
fn recovered_by_sqlite(dir: &Path, database: &[u8], journal: &[u8]) -> Vec<u8> {
    let path = dir.join("copy");
    fs::write(&path, database).expect("writes");
    fs::write(dir.join("copy-journal"), journal).expect("writes");
    let db = Connection::open(&path).expect("opens");
    // What is restored may be damaged, so the answer does not matter.
    let _ = db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    drop(db);
    fs::read(&path).expect("reads")
}

/// The database after our playback; and how many pages were restored.
fn recovered_by_us(database: &[u8], journal: &[u8]) -> (Vec<u8>, usize) {
    let mut database = database.to_vec();
    let page_size = Header::parse(&database).expect("a database").page_size;
    let playback = Playback::open(journal, journal.len() as u64, page_size).expect("memory");
    let Some(mut playback) = playback else { return (database, 0) };
    database.resize(playback.pages() as usize * page_size.len(), 0);
    let (mut page, mut count) = (Vec::new(), 0);
    while let Some(record) = playback.next_record(&mut page).expect("memory") {
        let at = record.offset as usize;
        assert_eq!(journal.get(at..at + page.len()), Some(page.as_slice()));
        let to = page_size.offset_of(record.pgno) as usize;
        database[to..to + page.len()].copy_from_slice(&page);
        count += 1;
    }
    (database, count)
}

#[test]
fn a_hot_journal_restores_what_sqlite_restores() {
    for page_size in [512, 1024, 4096, 65536] {
        for mode in ["delete", "truncate", "persist"] {
            for sync in ["off", "full"] {
                let dir = tempfile::tempdir().expect("a directory");
                let (database, journal) = crash(dir.path(), page_size, mode, sync);
                let name = format!("{page_size} {mode} {sync}");
                assert!(journal::looks_hot(&journal), "{name}");
                let (ours, count) = recovered_by_us(&database, &journal);
                assert!(count > 2, "{name}: {count} pages");
                assert!(ours == recovered_by_sqlite(dir.path(), &database, &journal), "{name}");
            }
        }
    }
}

#[test]
fn a_damaged_or_cut_journal_restores_what_sqlite_restores() {
    let dir = tempfile::tempdir().expect("a directory");
    let (database, journal) = crash(dir.path(), 1024, "delete", "full");
    let segments = journal.chunks(512).filter(|sector| sector.starts_with(&journal::MAGIC)).count();
    assert!(segments > 2, "several segments: {segments}");
    let third = journal.len() / 3;
    for at in [10, 520, 530, third, third + 1033, 2 * third, journal.len() - 3] {
        let mut damaged = journal.clone();
        damaged[at] ^= 0x40;
        let expected = recovered_by_sqlite(dir.path(), &database, &damaged);
        assert!(recovered_by_us(&database, &damaged).0 == expected, "damaged at {at}");
        let expected = recovered_by_sqlite(dir.path(), &database, &journal[..at]);
        assert!(recovered_by_us(&database, &journal[..at]).0 == expected, "cut at {at}");
    }
}

/// What SQLite appends to the journals of a transaction over several files.
fn with_super_journal(journal: &[u8], page_size: PageSize, name: &str) -> Vec<u8> {
    let mut bytes = journal.to_vec();
    let sum: u32 = name.bytes().map(u32::from).sum();
    bytes.extend(page_size.lock_page().get().to_be_bytes());
    bytes.extend(name.bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(sum.to_be_bytes());
    bytes.extend(journal::MAGIC);
    bytes
}

#[test]
fn a_journal_of_one_segment_is_told_from_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = |bytes: &[u8]| journal::is_one_segment(bytes, bytes.len() as u64).expect("memory");
    let (_, several) = crash(dir.path(), 1024, "delete", "full");
    assert!(!one(&several));
    let (_, unsynced) = crash(dir.path(), 1024, "delete", "off");
    assert!(one(&unsynced), "SQLite does not sync it, and begins no other segment");
    assert!(!one(&with_super_journal(&unsynced, size(1024), "/a/b-mj0123459AB")));
    // The first segment, and what an earlier journal left.
    let header = journal::Header::parse(&several).expect("a header");
    let end = 512 + header.records.expect("counted") as usize * 1032;
    assert!(one(&several[..end]));
    assert!(one(&[&several[..end], &[7; 5000]].concat()));
    assert!(!one(&[0; 512]) && !one(&[]));
}

#[test]
fn a_super_journal_that_is_gone_means_committed_to_sqlite_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let (database, journal) = crash(dir.path(), 4096, "delete", "full");
    let path = dir.path().join("copy-mj00ABCD9EF");
    let name = path.to_str().expect("utf-8");
    let journal = with_super_journal(&journal, size(4096), name);
    let found = journal::super_journal(&journal, journal.len() as u64).expect("memory");
    assert_eq!(found.as_deref(), Some(name.as_bytes()));

    assert!(recovered_by_sqlite(dir.path(), &database, &journal) == database, "gone: nothing is restored");
    // A super-journal that names this journal still needs it.
    fs::write(&path, format!("{}\0", dir.path().join("copy-journal").display())).expect("writes");
    let restored = recovered_by_sqlite(dir.path(), &database, &journal);
    assert!(restored == recovered_by_us(&database, &journal).0, "there: all is restored");
    assert!(restored != database);
}

#[test]
fn no_super_journal_is_found_where_there_is_none() {
    let find = |bytes: &[u8]| journal::super_journal(bytes, bytes.len() as u64).expect("memory");
    let good = with_super_journal(&[0; 512], size(512), "/a/b-mj0123459AB");
    assert_eq!(find(&good), Some(b"/a/b-mj0123459AB".to_vec()));
    assert_eq!(find(&good[..good.len() - 1]), None);
    for at in [good.len() - 1, good.len() - 9, good.len() - 16, good.len() - 17] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(find(&bad), None, "{at}");
    }
    for name in ["/a/b-mj012345AAB", "/a/b-mx0123459AB", "-mj012345", "/a/b-mj0123459AG"] {
        assert_eq!(find(&with_super_journal(&[0; 512], size(512), name)), None, "{name}");
    }
    assert_eq!(find(&[]), None);
    assert_eq!(find(&with_super_journal(&[], size(512), "")), None);
}

#[test]
fn a_finished_journal_restores_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let db = create(&path, 4096, "persist");
    fill(&db, 1, 50);
    let journal = fs::read(dir.path().join("db-journal")).expect("persists");
    assert!(!journal::looks_hot(&journal));
    assert!(Playback::open(&journal, journal.len() as u64, size(4096)).expect("memory").is_none());
}

/// The files of a WAL database with one transaction for each of several kinds, all
/// still in the WAL; the connection must stay open.
fn wal_database(path: &Path, page_size: u32) -> (Connection, u32) {
    let db = create(path, page_size, "wal");
    let statements = [
        "UPDATE t SET a='x' WHERE id=7",
        "DELETE FROM t WHERE id % 2 = 0",
        "CREATE TABLE u AS SELECT * FROM t",
        "DROP TABLE u",
        "VACUUM",
        "INSERT INTO t SELECT id+10000, a, b FROM t",
        "PRAGMA user_version=9",
    ];
    for statement in statements {
        db.execute_batch(statement).expect("runs");
    }
    (db, statements.len() as u32)
}

fn read_all(path: &Path) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let with = |suffix: &str| fs::read(format!("{}{suffix}", path.display())).expect("reads");
    (with(""), with("-wal"), with("-shm"))
}

fn transactions(wal: &[u8], authority: Authority) -> Result<Vec<Transaction>, WalError> {
    let header = WalHeader::read(wal).expect("memory").expect("a wal");
    let (mut cursor, mut found) = (header.start(), Vec::new());
    while let Some(transaction) = next_transaction(wal, &header, cursor, authority)? {
        cursor = transaction.end;
        found.push(transaction);
    }
    Ok(found)
}

#[test]
fn applying_a_wals_transactions_gives_what_a_checkpoint_gives() {
    for page_size in [512, 4096, 65536] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        let (db, at_least) = wal_database(&path, page_size);
        let (mut database, wal, shm) = read_all(&path);
        let found = transactions(&wal, Authority::Chain).expect("memory");
        assert!(found.len() as u32 > at_least, "{}", found.len());

        let index = WalIndex::parse(&shm).expect("a wal-index");
        let header = WalHeader::parse(&wal).expect("a wal");
        let last = found.last().expect("transactions");
        assert_eq!((index.frames, index.frame_sum), (last.end.frames, last.end.sum));
        assert_eq!((index.salt, index.page_size), (header.salt, header.page_size));
        assert_eq!((index.pages, index.big_endian), (last.commit, header.big_endian));
        assert_eq!(header.to_bytes(), wal[..32]);
        assert_eq!(transactions(&wal, Authority::Index(index.frames)).expect("agrees"), found);
        assert!(found.iter().all(|transaction| !transaction.broken));

        for transaction in &found {
            database.resize(transaction.commit as usize * page_size as usize, 0);
            for (page, offset) in &transaction.pages {
                let (to, from) = (size(page_size).offset_of(*page) as usize, *offset as usize);
                database[to..to + page_size as usize].copy_from_slice(&wal[from..from + page_size as usize]);
            }
        }
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpoints");
        assert!(fs::read(&path).expect("reads") == database, "{page_size}");
    }
}

#[test]
fn one_reader_finds_every_transaction_and_keeps_the_pages_it_read_last() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let (_db, _) = wal_database(&path, 1024);
    let (_, wal, shm) = read_all(&path);
    let header = WalHeader::parse(&wal).expect("a wal");
    let index = Authority::Index(WalIndex::parse(&shm).expect("a wal-index").frames);
    let expected = transactions(&wal, Authority::Chain).expect("memory");
    let mut buffer = Vec::new();
    for authority in [Authority::Chain, index] {
        let mut frames = Frames::new(wal.as_slice(), &header, buffer);
        let (mut cursor, mut found, mut kept) = (header.start(), Vec::new(), 0);
        while let Some(transaction) = frames.next(cursor, authority).expect("memory") {
            for (_, offset) in &transaction.pages {
                let from = *offset as usize;
                if let Some(page) = frames.page(*offset) {
                    assert!(page == &wal[from..from + 1024]);
                    kept += 1;
                }
            }
            cursor = transaction.end;
            found.push(transaction);
        }
        assert_eq!(found, expected);
        assert!(kept > 0);
        buffer = frames.into_buffer();
    }
}

#[test]
fn a_scan_goes_on_after_any_transaction_it_has_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let (_db, _) = wal_database(&path, 1024);
    let (_, wal, _) = read_all(&path);
    let header = WalHeader::parse(&wal).expect("a wal");
    let found = transactions(&wal, Authority::Chain).expect("memory");
    for pair in found.windows(2) {
        let cursor = header.after(&wal, pair[0].end.frames).expect("memory").expect("is there");
        assert_eq!(cursor, pair[0].end);
        let next = next_transaction(&wal, &header, cursor, Authority::Chain).expect("memory");
        assert_eq!(next.as_ref(), Some(&pair[1]));
    }
}

/// What a capture does: keeps an image of the database up to date from the WAL, as far
/// as the wal-index says that it is committed.
struct Follower {
    image: Vec<u8>,
    salt: [u32; 2],
    frames: u32,
}

impl Follower {
    fn follow(&mut self, path: &Path) {
        let wal = fs::read(format!("{}-wal", path.display())).expect("reads");
        let shm = fs::read(format!("{}-shm", path.display())).expect("reads");
        let index = WalIndex::parse(&shm).expect("nobody writes");
        let Some(header) = WalHeader::parse(&wal).filter(|header| header.salt == index.salt) else { return };
        if header.salt != self.salt {
            (self.salt, self.frames) = (header.salt, 0);
        }
        let mut cursor = header.after(&wal, self.frames).expect("memory").expect("is there");
        let authority = Authority::Index(index.frames);
        while let Some(found) = next_transaction(wal.as_slice(), &header, cursor, authority).expect("agrees")
        {
            self.image.resize(found.commit as usize * header.page_size.len(), 0);
            for (page, offset) in &found.pages {
                let (to, from) = (header.page_size.offset_of(*page) as usize, *offset as usize);
                let content = &wal[from..from + header.page_size.len()];
                self.image[to..to + content.len()].copy_from_slice(content);
            }
            cursor = found.end;
        }
        self.frames = cursor.frames;
    }
}

#[test]
fn following_the_wal_index_through_spills_savepoints_and_restarts_loses_nothing() {
    for (page_size, seed) in [(512, 1u64), (1024, 2), (4096, 3)] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("db");
        let db = create(&path, page_size, "wal");
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA cache_size=5; PRAGMA synchronous=off")
            .expect("sets up");
        let mut follower = Follower { image: fs::read(&path).expect("reads"), salt: [0, 0], frames: 0 };
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..120 {
            let (id, many) = (random(900), random(90));
            let change =
                format!("UPDATE t SET b=zeroblob({}+id%70) WHERE id BETWEEN {id} AND {id}+{many};", id % 400);
            let statements = match random(8) {
                0 => format!(
                    "BEGIN; SAVEPOINT s; {change} ROLLBACK TO s; DELETE FROM t WHERE id%50={}; COMMIT",
                    id % 50
                ),
                1 => {
                    format!("BEGIN; {change} SAVEPOINT s; UPDATE t SET a=a||'{round}'; ROLLBACK TO s; COMMIT")
                }
                2 => format!("BEGIN; {change} ROLLBACK"),
                3 => format!("INSERT OR REPLACE INTO t SELECT id+{id}, b, a FROM t LIMIT {many}"),
                4 => format!("DELETE FROM t WHERE id > {}", id + 300),
                5 if round % 4 == 0 => "VACUUM".to_owned(),
                6 => "PRAGMA wal_checkpoint(RESTART)".to_owned(),
                _ => change,
            };
            db.execute_batch(&statements).expect("runs");
            follower.follow(&path);
        }
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpoints");
        assert!(fs::read(&path).expect("reads") == follower.image, "page size {page_size}, seed {seed}");
    }
}

/// A WAL of three transactions of two frames each.
fn synthetic(big_endian: bool) -> (WalHeader, Vec<u8>) {
    let header = WalHeader::new(big_endian, size(512), 3, [17, 0xdead_beef]);
    let (mut wal, mut cursor) = (header.to_bytes().to_vec(), header.start());
    for at in 1..=3u8 {
        header.append_frame(&mut wal, &mut cursor, (pgno(1), 0), &[at; 512]);
        header.append_frame(&mut wal, &mut cursor, (pgno(u32::from(at)), 3), &[at + 10; 512]);
    }
    (header, wal)
}

#[test]
fn wals_of_either_byte_order_are_read() {
    for big_endian in [false, true] {
        let (header, wal) = synthetic(big_endian);
        assert_eq!(WalHeader::parse(&wal), Some(header));
        let found = transactions(&wal, Authority::Chain).expect("memory");
        let ends: Vec<_> = found.iter().map(|transaction| transaction.end.frames).collect();
        assert_eq!(ends, [2, 4, 6]);
        // Page 1 is written twice in the first transaction: the later frame counts.
        assert_eq!(found[0].pages, [(pgno(1), header.frame_offset(2) + 24)]);
    }
}

#[test]
fn a_broken_chain_ends_the_wal_unless_the_wal_index_says_otherwise() {
    let (header, mut wal) = synthetic(false);
    let third = header.frame_offset(3) as usize;
    wal[third + 24] ^= 1;
    assert_eq!(transactions(&wal, Authority::Chain).expect("memory").len(), 1);
    let found = transactions(&wal, Authority::Index(6)).expect("is believed");
    let broken: Vec<_> = found.iter().map(|transaction| transaction.broken).collect();
    assert_eq!(broken, [false, true, false]);
    // After the broken frame its own stored checksum carries on.
    let cursor = header.after(&wal, 4).expect("memory").expect("is there");
    assert!(next_transaction(&wal, &header, cursor, Authority::Chain).expect("memory").is_some());
}

#[test]
fn frames_that_were_never_published_do_not_count() {
    let (_, wal) = synthetic(false);
    assert_eq!(transactions(&wal, Authority::Index(4)).expect("agrees").len(), 2);
    assert!(matches!(transactions(&wal, Authority::Index(3)), Err(WalError::Contradiction { frame: 3, .. })));
    assert!(matches!(transactions(&wal, Authority::Index(7)), Err(WalError::Contradiction { frame: 7, .. })));
}

#[test]
fn frames_of_an_earlier_wal_do_not_count() {
    let (header, mut wal) = synthetic(false);
    let fifth = header.frame_offset(5) as usize;
    wal[fifth + 8] ^= 1;
    assert_eq!(transactions(&wal, Authority::Chain).expect("memory").len(), 2);
    assert!(transactions(&wal, Authority::Index(6)).is_err());
    assert_eq!(header.after(&wal, 5).expect("memory"), None);
    for len in 0..wal.len() {
        if len < 32 {
            assert_eq!(WalHeader::parse(&wal[..len]), None);
        } else {
            let found = transactions(&wal[..len], Authority::Chain).expect("memory").len();
            assert_eq!(found, ((len - 32) / (536 * 2)).min(2), "{len}");
        }
    }
}

#[test]
fn a_wal_index_that_cannot_be_believed_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let (_db, _) = wal_database(&path, 4096);
    let shm = fs::read(dir.path().join("db-shm")).expect("reads");
    let parse = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = shm[..wal_index::LEN].to_vec();
        change(&mut bytes);
        WalIndex::parse(&bytes)
    };
    let index = parse(&|_| {}).expect("a wal-index");
    assert_eq!(index.backfilled, 0);
    assert_eq!(parse(&|bytes| bytes[16] ^= 1), Err(Unusable::Torn));
    let both = |at: usize, flip: u8| {
        parse(&|bytes| {
            bytes[at] ^= flip;
            bytes[at + 48] ^= flip;
        })
    };
    assert_eq!(both(16, 1), Err(Unusable::Checksum));
    assert_eq!(both(12, 1), Err(Unusable::Uninitialised));
    assert_eq!(parse(&|bytes| bytes.fill(0)), Err(Unusable::Uninitialised));
    assert_eq!(parse(&|bytes| bytes.truncate(135)), Err(Unusable::Uninitialised));
    assert_eq!(parse(&|bytes| bytes[96] = 5).map(|index| index.backfilled), Ok(5));
}
