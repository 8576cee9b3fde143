//! A database as a list of pages, whose whole history is remembered: what the
//! archive must give back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::archive::{Archive, ChangeSet, Options, PageSink, Target, Writer};
use crate::ltx::{Codec, Encoder, Form, Header};
use crate::object::{MemoryStore, ObjectStore};
use crate::words::{
    Checksum, DbName, Epoch, ManualClock, NodeId, PageSize, PageSum, Pgno, Pos, Timestamp, Txid,
};

/// A seed from `LITEFS_SEED` or from chance; printed, for a failing test to be run again.
pub fn seed() -> u64 {
    let seed = std::env::var("LITEFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("LITEFS_SEED={seed}");
    seed
}

/// One state of the database.
#[derive(Clone)]
pub struct State {
    pub pos: Pos,
    pub time: Timestamp,
    pub pages: Vec<Arc<Vec<u8>>>,
}

/// A database with its history.
pub struct Model {
    pub db: DbName,
    pub page_size: PageSize,
    pub codec: Codec,
    pub states: Vec<State>,
    rng: StdRng,
}

impl Model {
    pub fn new(name: &str, seed: u64) -> Model {
        Model {
            db: DbName::new(name).expect("a name"),
            page_size: PageSize::new(512).expect("a size"),
            codec: Codec::Zstd { level: 1 },
            states: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    pub fn pos(&self) -> Pos {
        self.states.last().map_or(Pos::ZERO, |state| state.pos)
    }

    fn pages(&self) -> Vec<Arc<Vec<u8>>> {
        self.states.last().map_or_else(Vec::new, |state| state.pages.clone())
    }

    fn content(&mut self) -> Arc<Vec<u8>> {
        let (byte, filled) = (self.rng.random::<u8>(), self.rng.random_range(0..self.page_size.len()));
        let mut page = vec![byte; self.page_size.len()];
        for byte in page.iter_mut().take(filled.min(64)) {
            *byte = self.rng.random();
        }
        Arc::new(page)
    }

    /// A transaction that changes some pages, grows or shrinks the database.
    pub fn commit(&mut self, time: Timestamp) -> ChangeSet {
        let before = self.pages();
        let size = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(1..=before.len().max(1)),
            1..=4 => before.len() + self.rng.random_range(1..6),
            _ => before.len().max(1),
        };
        let mut pages = before.clone();
        pages.truncate(size);
        let mut changed: Vec<usize> = (pages.len()..size).collect();
        for _ in 0..self.rng.random_range(0..4) {
            changed.push(self.rng.random_range(0..size));
        }
        for at in &changed {
            let page = self.content();
            match pages.get_mut(*at) {
                Some(place) => *place = page,
                None => pages.push(page),
            }
        }
        self.record(pages, &changed, time)
    }

    /// A transaction that changes one page and no size.
    pub fn touch(&mut self, time: Timestamp) -> ChangeSet {
        let mut pages = self.pages();
        let at = self.rng.random_range(0..pages.len());
        pages[at] = self.content();
        self.record(pages, &[at], time)
    }

    /// A transaction that rewrites everything with another page size.
    pub fn vacuum(&mut self, page_size: u32, pages: usize, time: Timestamp) -> ChangeSet {
        self.page_size = PageSize::new(page_size).expect("a size");
        let pages: Vec<_> = (0..pages).map(|_| self.content()).collect();
        let all: Vec<usize> = (0..pages.len()).collect();
        self.record(pages, &all, time)
    }

    /// Everything until now as one change set, as of a database that comes from
    /// elsewhere.
    pub fn whole(&self) -> ChangeSet {
        let State { pos, time, pages } = self.last();
        let all: Vec<usize> = (0..pages.len()).collect();
        let ltx = self.encode(Pos::ZERO, *pos, pages, &all, *time);
        ChangeSet::new(self.db.clone(), ltx).expect("a change set")
    }

    /// The database is dropped.
    pub fn drop_database(&mut self, time: Timestamp) -> ChangeSet {
        self.record(Vec::new(), &[], time)
    }

    fn record(&mut self, pages: Vec<Arc<Vec<u8>>>, changed: &[usize], time: Timestamp) -> ChangeSet {
        let pre = self.pos();
        let post = Pos { txid: pre.txid.next(), checksum: checksum(&pages) };
        let time = self.states.last().map_or(time, |last| last.time.max(time));
        let ltx = self.encode(pre, post, &pages, changed, time);
        self.states.push(State { pos: post, time, pages });
        ChangeSet::new(self.db.clone(), ltx).expect("a change set")
    }

    fn encode(
        &self,
        pre: Pos,
        post: Pos,
        pages: &[Arc<Vec<u8>>],
        changed: &[usize],
        time: Timestamp,
    ) -> Bytes {
        let lz4 = self.codec == Codec::Lz4 && !pages.is_empty();
        let header = Header {
            page_size: self.page_size,
            commit: u32::try_from(pages.len()).expect("small"),
            min: pre.txid.next(),
            max: post.txid,
            timestamp: time,
            pre: pre.checksum,
            wal: None,
            node: 7,
            form: if lz4 { Form::NoChecksum { post: post.checksum } } else { Form::Tracked },
            codec: self.codec,
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("a header");
        let mut sorted = changed.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        for at in sorted {
            encoder.page(pgno(at), pages.get(at).expect("a page")).expect("a page");
        }
        encoder.finish(post.checksum).expect("a change set").writer.into()
    }

    pub fn last(&self) -> &State {
        self.states.last().expect("a state")
    }
}

pub fn pgno(at: usize) -> Pgno {
    Pgno::new(u32::try_from(at + 1).expect("small")).expect("not zero")
}

pub fn checksum(pages: &[Arc<Vec<u8>>]) -> Checksum {
    pages.iter().enumerate().fold(Checksum::EMPTY, |sum, (at, page)| sum.toggle(PageSum::of(pgno(at), page)))
}

/// Collects restored pages and refuses one that comes twice.
#[derive(Default)]
pub struct Pages(pub Mutex<std::collections::BTreeMap<u32, Vec<u8>>>);

impl PageSink for Pages {
    fn page(&self, pgno: Pgno, data: &[u8], sum: PageSum) -> io::Result<()> {
        assert_eq!(sum, PageSum::of(pgno, data));
        assert!(self.0.lock().insert(pgno.get(), data.to_vec()).is_none(), "page {pgno} came twice");
        Ok(())
    }
}

impl Pages {
    pub fn into_pages(self) -> Vec<Vec<u8>> {
        self.0.into_inner().into_values().collect()
    }
}

/// An archive in memory, its clock, and a deterministic source of numbers.
pub struct Bed {
    pub clock: Arc<ManualClock>,
    pub options: Options,
    pub store: Arc<dyn ObjectStore>,
}

impl Bed {
    pub fn new() -> Bed {
        Bed::on(Arc::new(MemoryStore::new()))
    }

    pub fn on(store: Arc<dyn ObjectStore>) -> Bed {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_800_000_000_000)));
        let options = Options { clock: clock.clone(), parallel: 4, ..Options::default() };
        Bed { clock, options, store }
    }

    pub fn archive(&self) -> Archive {
        Archive::open_or_init(self.store.clone(), self.options.clone()).expect("an archive")
    }

    pub fn writer(&self, epoch: u64) -> Writer {
        Writer::seal(&self.archive(), Epoch::new(epoch), NodeId::new(epoch)).expect("a writer")
    }

    pub fn tick(&self) -> Timestamp {
        use crate::words::Clock;
        self.clock.advance(Duration::from_secs(1));
        self.clock.now()
    }
}

/// What a restore gives must be exactly `state`.
pub fn assert_restores(archive: &Archive, db: &DbName, target: Target, state: &State) {
    let head = archive.head().expect("a head");
    let plan = archive.plan(&head, db, target).unwrap_or_else(|error| panic!("{target}: {error}"));
    assert_eq!(plan.pos, state.pos, "{target}");
    let sink = Pages::default();
    archive.restore(&plan, &sink, &()).unwrap_or_else(|error| panic!("{target}: {error}"));
    let pages = sink.into_pages();
    assert_eq!(pages.len(), state.pages.len(), "{target}");
    assert!(pages.iter().zip(&state.pages).all(|(a, b)| a == b.as_ref()), "{target}: pages differ");
}

/// Every state of the model at its TXID and just before the next one's time.
pub fn assert_all_restorable(archive: &Archive, model: &Model, from: Txid) {
    for (at, state) in model.states.iter().enumerate().filter(|(_, state)| state.pos.txid >= from) {
        if state.pages.is_empty() {
            let head = archive.head().expect("a head");
            let refused = archive.plan(&head, &model.db, Target::Txid(state.pos.txid));
            assert!(refused.is_err(), "{} is the drop", state.pos);
            continue;
        }
        assert_restores(archive, &model.db, Target::Txid(state.pos.txid), state);
        if model.states.get(at + 1).is_none_or(|next| next.time > state.time) {
            assert_restores(archive, &model.db, Target::Timestamp(state.time), state);
        }
    }
}
