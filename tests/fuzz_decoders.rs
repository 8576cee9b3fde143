//! Random and mutated inputs for every decoder of src/ltx, src/sqlite and
//! src/peer/wire: none may
//! panic, hang, or allocate more than its input justifies. Ten seconds on every run;
//! `fuzz/` has the same functions for libFuzzer.
//!
//! `LITEFS_SEED=<number>` repeats a run; a failure prints its seed.
//! `LITEFS_FUZZ_CORPUS=<directory>` writes the sound samples there, for libFuzzer.
#![allow(missing_docs)]

#[path = "../fuzz/decoders.rs"]
mod decoders;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use litefs::ltx::{Codec, Encoder, Form, Header};
use litefs::peer::wire::{Beat, ChangeHead, Down, Ending, Hello, Message, Up, Welcome};
use litefs::words::{
    Checksum, ClusterId, DbName, Epoch, NodeId, PageSize, PageSum, Pgno, Pos, Timestamp, Txid,
};
use rusqlite::Connection;

/// Remembers the largest allocation.
struct Watching;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn pages(count: u32, len: usize, random: &mut Random) -> Vec<Vec<u8>> {
    (0..count)
        .map(|_| {
            let (byte, noisy) = (random.next() as u8, random.below(3) == 0);
            (0..len).map(|at| if noisy || at % 9 == 0 { random.next() as u8 } else { byte }).collect()
        })
        .collect()
}

/// Sound change sets of every kind.
fn change_sets(random: &mut Random) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for codec in [Codec::Lz4, Codec::Zstd { level: 1 }] {
        for (form, first) in [(0, 1), (0, 7), (1, 1), (1, 7), (2, 1)] {
            let page_size = PageSize::new([512, 1024, 4096][random.below(3)]).expect("a page size");
            let contents = pages(1 + random.below(4) as u32, page_size.len(), random);
            let numbered: Vec<_> = Pgno::up_to(contents.len() as u32).zip(contents).collect();
            let toggle = |sum: Checksum, (pgno, page): &(Pgno, Vec<u8>)| sum.toggle(PageSum::of(*pgno, page));
            let post = numbered.iter().fold(Checksum::EMPTY, toggle);
            let header = Header {
                page_size,
                commit: numbered.len() as u32,
                min: Txid::new(first),
                max: Txid::new(first + 2),
                timestamp: Timestamp::from_millis(1_700_000_000_000),
                pre: if first == 1 { Checksum::EMPTY } else { post },
                wal: None,
                node: random.next(),
                form: [Form::Tracked, Form::NoChecksum { post }, Form::Untracked][form],
                codec,
            };
            let header = if form == 2 { Header { pre: Checksum::EMPTY, ..header } } else { header };
            let mut encoder = Encoder::new(Vec::new(), header).expect("sound");
            for (pgno, page) in &numbered {
                encoder.page(*pgno, page).expect("sound");
            }
            all.push(encoder.finish(post).expect("sound").writer);
        }
    }
    all
}

/// Database, journal, WAL and wal-index that SQLite wrote.
fn sqlite_files(dir: &Path) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (mode, page_size) in [("delete", 512), ("wal", 512), ("delete", 4096), ("wal", 4096)] {
        let path = dir.join(format!("{mode}{page_size}"));
        let db = Connection::open(&path).expect("opens");
        db.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}; CREATE TABLE t(a);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40)
             INSERT INTO t SELECT zeroblob(i*20) FROM n;
             DELETE FROM t WHERE rowid > 5;
             PRAGMA cache_size=2; BEGIN; UPDATE t SET a=randomblob(600); INSERT INTO t SELECT a FROM t;"
        ))
        .expect("runs");
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let path = format!("{}{suffix}", path.display());
            all.extend(std::fs::read(path).ok().filter(|bytes| !bytes.is_empty()));
        }
    }
    all
}

/// What a replica and a primary say to each other.
fn streams() -> Vec<Vec<u8>> {
    let pos =
        |txid| Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | txid).expect("sound") };
    let db = |name| DbName::new(name).expect("a name");
    let (cluster, node, hostname) = (ClusterId::new(1), NodeId::new(2), "a node".to_owned());
    let ups = [
        Up::Hello(Hello { cluster, node, hostname: hostname.clone() }),
        Up::At(vec![(db("a.db"), pos(1)), (db("t/b"), pos(2))]),
        Up::Ready,
        Up::Beat,
    ];
    let change = ChangeHead {
        db: db("a.db"),
        pre: pos(1),
        post: pos(2),
        page_size: PageSize::new(4096).expect("a page size"),
        commit: 3,
        pages: 2,
        timestamp: Timestamp::from_millis(5),
    };
    let downs = [
        Down::Welcome(Welcome { cluster, node, hostname, epoch: Epoch::new(3) }),
        Down::Change(change),
        Down::Data(vec![7; 300].into()),
        Down::Done(300),
        Down::Beat(Beat { at: Duration::from_secs(1), wall: Timestamp::from_millis(5) }),
        Down::Archived(vec![(db("a.db"), pos(1))]),
        Down::Settle { db: db("t/b"), pos: pos(4) },
        Down::End(Ending::Handoff),
    ];
    let (mut up, mut down) = (Vec::new(), Vec::new());
    ups.iter().for_each(|frame| frame.write(&mut up));
    downs.iter().for_each(|frame| frame.write(&mut down));
    vec![up, down]
}

fn mutate(samples: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = samples[random.below(samples.len())].clone();
    if random.below(50) == 0 {
        bytes = (0..random.below(5000)).map(|_| random.next() as u8).collect();
    }
    // Headers and trailers are where the decisions are.
    let place = |bytes: &[u8], random: &mut Random| match random.below(3) {
        0 => random.below(bytes.len().min(160)),
        1 => bytes.len().saturating_sub(1 + random.below(64)),
        _ => random.below(bytes.len()),
    };
    for _ in 0..random.below(5) {
        if bytes.is_empty() {
            break;
        }
        let at = place(&bytes, random);
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes.truncate(at),
            3 => {
                let word = [0, 1, 2, u32::MAX, 0x7fff_ffff, 0x8000_0000, 65536, random.next() as u32];
                let word = word[random.below(word.len())].to_be_bytes();
                bytes.iter_mut().skip(at).zip(word).for_each(|(to, from)| *to = from);
            }
            4 => {
                let end = (at + random.below(600)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = place(&bytes, random);
                bytes.splice(to..to, piece);
            }
            5 => drop(bytes.drain(at..(at + random.below(40)).min(bytes.len()))),
            _ => {
                let other = &samples[random.below(samples.len())];
                let from = random.below(other.len());
                let end = (from + random.below(600)).min(other.len());
                bytes.splice(at.., other[from..end].iter().copied());
            }
        }
    }
    bytes
}

fn seed() -> u64 {
    match std::env::var("LITEFS_SEED") {
        Ok(text) => text.parse().expect("LITEFS_SEED is a number"),
        Err(_) => getrandom::u64().expect("the system has randomness"),
    }
}

/// Most decoders refuse after few bytes; none needs more than this for one input.
const GENEROUS: Duration = Duration::from_secs(60);

/// The longest sample is 100 KB; a few pages, tables of codecs, vectors that double.
const MOST: usize = 4 << 20;

#[test]
fn no_input_makes_a_decoder_panic_hang_or_allocate() {
    let seed = seed();
    println!("LITEFS_SEED={seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let mut random = Random(seed);
    let mut samples = change_sets(&mut random);
    samples.extend(sqlite_files(dir.path()));
    samples.extend(streams());
    samples.push(b"0000000000000001-000000000000000a.ltx".to_vec());
    if let Some(corpus) = std::env::var_os("LITEFS_FUZZ_CORPUS") {
        for (at, sample) in samples.iter().enumerate() {
            std::fs::write(Path::new(&corpus).join(at.to_string()), sample).expect("writes the corpus");
        }
    }
    for sample in &samples {
        decoders::TARGETS.iter().for_each(|(_, target)| target(sample));
    }
    for (name, target) in decoders::TARGETS {
        let begin = Instant::now();
        let mut round = 0;
        while round < 20_000 && begin.elapsed() < Duration::from_millis(1400) {
            let mut random = Random(seed ^ (round * 0x1_0000_0001));
            let bytes = mutate(&samples, &mut random);
            LARGEST.store(0, Ordering::Relaxed);
            let started = Instant::now();
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            let (took, largest) = (started.elapsed(), LARGEST.load(Ordering::Relaxed));
            assert!(outcome.is_ok(), "{name} panicked: LITEFS_SEED={seed}, round {round}");
            assert!(took < GENEROUS, "{name} took {took:?}: LITEFS_SEED={seed}, round {round}");
            assert!(largest < MOST, "{name} allocated {largest}: LITEFS_SEED={seed}, round {round}");
            round += 1;
        }
        println!("{name}: {round} inputs");
    }
}
