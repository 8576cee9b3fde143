//! What must hold of a store: the chain of change sets, played back from nothing,
//! is the database. Must not change what it checks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use litefs::db::{Committed, FileKind, Goal};
use litefs::sqlite::{freelist, header};
use litefs::store::Store;
use litefs::words::{Checksum, DbName, PageSize, PageSum, Pgno, Pos};
use rusqlite::{Connection, OpenFlags};

use super::workload::number;

/// One database as its chain says.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Where it stands.
    pub pos: Pos,
    /// Every position that it had.
    pub history: Vec<Pos>,
    page_size: Option<PageSize>,
    pages: Vec<Vec<u8>>,
}

impl Chain {
    /// Applies a change set of the log: it must begin where the chain ends, and lead
    /// to the checksum that it states.
    pub fn apply(&mut self, store: &Store, committed: &Committed) {
        let stored = store.log().read(committed.place).expect("the log has it");
        let meta = &stored.meta;
        assert_eq!(meta, &committed.meta);
        assert_eq!(meta.pre, self.pos, "the chain of {} has no gap", meta.db);
        if self.page_size != Some(meta.page_size) {
            self.pages.clear();
        }
        self.page_size = Some(meta.page_size);
        let before = self.pages.len();
        self.pages.resize(meta.commit as usize, Vec::new());
        let mut page = Vec::new();
        for (index, (pgno, sum)) in stored.pages.iter().enumerate() {
            stored.page(index, &mut page).expect("the log has the page");
            assert_eq!(PageSum::of(*pgno, &page), *sum);
            self.pages[pgno.get() as usize - 1] = page.clone();
        }
        let lock = meta.page_size.lock_page().get() as usize - 1;
        for (at, page) in self.pages.iter().enumerate().skip(before) {
            assert!(at == lock || !page.is_empty(), "page {} of {} came with its growth", at + 1, meta.db);
        }
        assert_eq!(self.checksum(), meta.post.checksum, "{} adds up at {}", meta.db, meta.post);
        self.pos = meta.post;
        self.history.push(meta.post);
    }

    fn checksum(&self) -> Checksum {
        let pages =
            Pgno::up_to(self.pages.len() as u32).zip(&self.pages).filter(|(_, page)| !page.is_empty());
        pages.fold(Checksum::EMPTY, |sum, (pgno, page)| sum.toggle(PageSum::of(pgno, page)))
    }

    /// Where a copy of it stands.
    pub fn goal(&self) -> Goal {
        let page_size = self.page_size.expect("it has pages");
        Goal { pos: self.pos, page_size, pages: self.pages.len() as u32 }
    }

    /// Nothing, or dropped.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Its pages, but for the lock page.
    pub fn pages(&self) -> impl Iterator<Item = (Pgno, &[u8])> {
        let pages = Pgno::up_to(self.pages.len() as u32).zip(self.pages.iter().map(Vec::as_slice));
        pages.filter(|(_, page)| !page.is_empty())
    }

    /// The number of the last transaction in it.
    pub fn number(&self) -> u64 {
        let Some(size) = self.page_size else { return 0 };
        let file = tempfile::NamedTempFile::new().expect("a file");
        for (at, page) in self.pages.iter().enumerate() {
            file.as_file().write_all_at(page, (at * size.len()) as u64).expect("written");
        }
        number(&at_rest(file.path())).expect("read")
    }

    /// Its free leaf pages, whose bytes SQLite never reads.
    pub fn free_leaves(&self) -> freelist::Freelist {
        let head = self.pages.first().and_then(|page| header::Header::parse(page));
        let walked = head.map(|head| {
            freelist::walk(&head, self.pages.len() as u32, |pgno, page| {
                page.copy_from_slice(&self.pages[pgno.get() as usize - 1]);
                Ok(())
            })
        });
        // Where there is none that can be walked, every page counts.
        walked.and_then(Result::ok).unwrap_or_default()
    }

    /// Whether `bytes` are this database, free leaf pages aside.
    pub fn assert_is(&self, bytes: &[u8], what: &str) {
        let Some(size) = self.page_size else {
            assert!(bytes.is_empty(), "{what}: nothing was captured");
            return;
        };
        assert_eq!(bytes.len(), self.pages.len() * size.len(), "{what}: size at {}", self.pos);
        let leaves = self.free_leaves();
        for ((pgno, page), file) in
            Pgno::up_to(self.pages.len() as u32).zip(&self.pages).zip(bytes.chunks(size.len()))
        {
            let same = page == file || page.is_empty() || leaves.is_leaf(pgno);
            assert!(same, "{what}: page {pgno} differs from the chain at {}", self.pos);
        }
    }
}

/// The chains of all databases, as far as they were followed.
#[derive(Clone, Debug, Default)]
pub struct Chains(pub BTreeMap<DbName, Chain>);

impl Chains {
    /// Takes what the store has captured since the last call.
    pub fn follow(&mut self, store: &Store) {
        for committed in store.commits().take(|_| true) {
            self.0.entry(committed.meta.db.clone()).or_default().apply(store, &committed);
        }
        store.commits().published();
    }

    /// The database.
    pub fn of(&self, name: &str) -> Chain {
        self.0.get(&DbName::new(name).expect("a name")).cloned().unwrap_or_default()
    }

    /// Checks every database of a live store through an image.
    pub fn check_live(&mut self, store: &Store) {
        for database in store.databases() {
            let image = database.image(store.dir()).expect("an image");
            self.follow(store);
            let chain = self.of(database.name().as_str());
            assert_eq!(database.pos(), chain.pos);
            let Some(image) = image else { continue };
            assert_eq!(image.pos, chain.pos);
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut &image.file, &mut bytes).expect("the image is read");
            chain.assert_is(&bytes, database.name().as_str());
        }
    }

    /// Checks every database of a store that was just opened: its files alone.
    pub fn check_opened(&mut self, store: &Store, what: &str) {
        self.check_same(store, what);
        for database in store.databases() {
            let path = database.path(FileKind::Database);
            if fs::metadata(&path).is_ok_and(|file| file.len() > 0) {
                integrity(&path, what);
            }
        }
    }

    /// As `check_opened`, of databases that may be damaged in themselves.
    pub fn check_same(&mut self, store: &Store, what: &str) {
        self.follow(store);
        for database in store.all() {
            let chain = self.of(database.name().as_str());
            assert_eq!(database.pos(), chain.pos, "{what}: {}", database.name());
            if !database.exists() {
                continue;
            }
            for kind in [FileKind::Wal, FileKind::Shm] {
                assert!(!database.path(kind).exists(), "{what}: {kind:?} is left");
            }
            let bytes = fs::read(database.path(FileKind::Database)).expect("the file");
            if chain.pos == Pos::ZERO && !is_whole(&bytes) {
                // Nothing of a first transaction is left, or not enough.
                continue;
            }
            chain.assert_is(&bytes, what);
            self.check_sums(&database.dir().join("sums"), &chain, what);
        }
    }

    fn check_sums(&self, path: &Path, chain: &Chain, what: &str) {
        let bytes = fs::read(path).unwrap_or_default();
        for ((pgno, page), entry) in
            Pgno::up_to(chain.pages.len() as u32).zip(&chain.pages).zip(bytes.chunks_exact(8))
        {
            let stated = u64::from_be_bytes(entry.try_into().expect("8 bytes"));
            let sum = if page.is_empty() { 0 } else { PageSum::of(pgno, page).get() };
            assert_eq!(stated, sum, "{what}: the table's entry of page {pgno}");
        }
        assert!(bytes.len() >= chain.pages.len() * 8, "{what}: the table is as long as the database");
    }
}

/// Whether a file has as many pages as its header states.
pub fn is_whole(bytes: &[u8]) -> bool {
    header::Header::parse(bytes).is_some_and(|head| {
        head.pages().is_some_and(|pages| pages as usize * head.page_size.len() <= bytes.len())
    })
}

/// Opens a database file that nobody uses, without locks, journal and WAL.
pub fn at_rest(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let uri = format!("file:{}?immutable=1", path.display());
    Connection::open_with_flags(uri, flags).expect("a connection")
}

/// SQLite itself finds the file sound.
pub fn integrity(path: &Path, what: &str) {
    let answer: String = at_rest(path)
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap_or_else(|error| format!("{error}"));
    assert_eq!(answer, "ok", "{what}");
}
