//! An archive in memory that does what the test says: takes what waits to be published,
//! checks that it continues the chain, has it when the test wants it to. Its databases
//! can be compared with those of the mount.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use litefs::db::Committed;
use litefs::store::Store;
use litefs::words::{DbName, Pgno, Pos};

/// One database as its change sets make it.
#[derive(Debug, Default)]
struct Image {
    pos: Pos,
    page_size: u32,
    pages: BTreeMap<u32, Vec<u8>>,
}

/// The archive; it publishes by itself unless it is held.
pub struct Chain {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    store: Arc<Store>,
    images: Mutex<BTreeMap<DbName, Image>>,
    held: AtomicBool,
    ends: AtomicBool,
    /// How often something was published.
    puts: Mutex<u64>,
}

impl Chain {
    /// Publishes what the store has.
    pub fn new(store: &Arc<Store>) -> Chain {
        let inner = Arc::new(Inner {
            store: Arc::clone(store),
            images: Mutex::default(),
            held: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            puts: Mutex::new(0),
        });
        let worker = Arc::clone(&inner);
        let thread = std::thread::spawn(move || {
            while !worker.ends.load(Ordering::Acquire) {
                worker.store.commits().wait_waiting(|| worker.ends.load(Ordering::Acquire));
                if worker.held.load(Ordering::Acquire) {
                    worker.store.commits().pause(Duration::from_millis(5));
                } else {
                    worker.put();
                }
            }
        });
        Chain { inner, thread: Some(thread) }
    }

    /// From now on nothing is published but by [`Chain::put`].
    pub fn hold(&self) {
        self.inner.held.store(true, Ordering::Release);
        // What is being put now is done after this.
        drop(self.inner.puts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Publishes by itself again.
    pub fn go_on(&self) {
        self.inner.held.store(false, Ordering::Release);
        self.inner.store.commits().wake();
    }

    /// Publishes what waits, in one put; how many change sets.
    pub fn put(&self) -> usize {
        self.inner.put()
    }

    /// How often something was published.
    pub fn puts(&self) -> u64 {
        *self.inner.puts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a database stands.
    pub fn pos(&self, db: &str) -> Pos {
        let images = self.inner.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&DbName::new(db).expect("a name")).map_or(Pos::ZERO, |image| image.pos)
    }

    /// Writes a database as it is here to a file.
    pub fn restore(&self, db: &str, to: &Path) {
        let images = self.inner.images.lock().unwrap_or_else(PoisonError::into_inner);
        let image = images.get(&DbName::new(db).expect("a name")).expect("a database of the chain");
        let file = std::fs::File::create(to).expect("create");
        for (pgno, page) in &image.pages {
            file.write_all_at(page, u64::from(pgno - 1) * u64::from(image.page_size)).expect("write");
        }
    }
}

impl Inner {
    fn put(&self) -> usize {
        let mut puts = self.puts.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.store.commits().take(|_| true);
        for commit in &taken {
            self.apply(commit);
        }
        if !taken.is_empty() {
            *puts += 1;
            self.store.commits().published();
        }
        taken.len()
    }

    fn apply(&self, commit: &Committed) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let image = images.entry(commit.meta.db.clone()).or_default();
        assert_eq!(commit.meta.pre, image.pos, "{} does not continue the chain", commit.meta.db);
        if image.page_size != commit.meta.page_size.get() {
            (image.page_size, image.pages) = (commit.meta.page_size.get(), BTreeMap::new());
        }
        let stored = self.store.log().read(commit.place).expect("read the log");
        for (index, (pgno, _)) in stored.pages.iter().enumerate() {
            let mut page = Vec::new();
            stored.page(index, &mut page).expect("read a page");
            image.pages.insert(Pgno::get(*pgno), page);
        }
        image.pages.retain(|pgno, _| *pgno <= commit.meta.commit);
        image.pos = commit.meta.post;
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.inner.ends.store(true, Ordering::Release);
        self.inner.store.commits().wake();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the chain was broken");
        }
    }
}
