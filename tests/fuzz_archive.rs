//! Bounded fuzzing of the archive's decoders: whatever the bytes, no panic, no
//! endless loop, no allocation that the bytes only claim.

use bytes::Bytes;
use litefs::archive::{
    Archive, ChangeSet, Manifest, Occasion, Options, PackFault, SegmentFault, Writer, keys, pack, segment,
};
use litefs::ltx::{Codec, Encoder, Form, Header};
use litefs::object::{MemoryStore, ObjectStore, PutCond};
use litefs::words::{Checksum, DbName, Epoch, NodeId, PageSize, PageSum, Pgno, Timestamp, Txid};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;

const ROUNDS: usize = 20_000;

fn rng() -> StdRng {
    let seed = std::env::var("LITEFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("LITEFS_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A database of `pages` pages as its first transaction.
fn first_change(name: &str, pages: u32) -> ChangeSet {
    let header = Header {
        page_size: PageSize::new(512).expect("a size"),
        commit: pages,
        min: Txid::new(1),
        max: Txid::new(1),
        timestamp: Timestamp::from_millis(5),
        pre: Checksum::EMPTY,
        wal: None,
        node: 1,
        form: Form::Tracked,
        codec: Codec::Lz4,
    };
    let mut encoder = Encoder::new(Vec::new(), header).expect("a header");
    let mut sum = Checksum::EMPTY;
    for pgno in Pgno::up_to(pages) {
        let page = [pgno.get().to_le_bytes()[0]; 512];
        sum = sum.toggle(PageSum::of(pgno, &page));
        encoder.page(pgno, &page).expect("a page");
    }
    let ltx: Bytes = encoder.finish(sum).expect("a change set").writer.into();
    ChangeSet::new(DbName::new(name).expect("a name"), ltx).expect("a change set")
}

/// A segment, a pack and a manifest as litefs writes them.
fn samples() -> (Bytes, Bytes, Bytes) {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    let archive = Archive::open_or_init(store.clone(), Options::default()).expect("an archive");
    let writer = Writer::seal(&archive, Epoch::new(1), NodeId::new(1)).expect("a writer");
    let sets: Vec<ChangeSet> = (1..6).map(|at| first_change(&format!("{at}.db"), at)).collect();
    let seq = writer.put(&sets).expect("a put");
    let get = |key: &str| store.get(key).expect("reachable").expect("there").body;
    let log = get(&keys::segment(seq));
    writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
    let bodies: Vec<_> = sets
        .iter()
        .filter_map(|set| match &set.body {
            litefs::archive::Body::Bytes(ltx) => Some((set.change, ltx.clone())),
            litefs::archive::Body::File(_) => None,
        })
        .collect();
    let db = DbName::new("a.db").expect("a name");
    (log, pack::encode(&db, &bodies), get(keys::MANIFEST))
}

/// A few random changes to a sample, or random bytes behind its beginning.
fn mutate(rng: &mut StdRng, sample: &[u8]) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len().max(1));
        match rng.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..rng.random_range(0..40)).map(|_| rng.random::<u8>())),
            2 => {
                for byte in bytes.iter_mut().skip(at).take(8) {
                    *byte = [0, 0xff, 0x7f, 0x80, rng.random()][rng.random_range(0..5)];
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    bytes
}

/// With a checksum made right again, so that what lies behind it is reached, too.
fn with_sum(mut bytes: Vec<u8>, fixed: usize, len_at: usize) -> Vec<u8> {
    let len = bytes.get(len_at..len_at + 4).and_then(|len| len.try_into().ok()).map(u32::from_be_bytes);
    if let Some(end) = len.and_then(|len| fixed.checked_add(len as usize))
        && end + 8 <= bytes.len()
    {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes[..end]);
        bytes[end..end + 8].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

#[test]
fn segments_of_any_bytes_are_refused_or_read() {
    let (mut rng, (sample, ..)) = (rng(), samples());
    for round in 0..ROUNDS {
        let mut bytes = mutate(&mut rng, &sample);
        if round % 2 == 0 {
            bytes = with_sum(bytes, 96, 12);
        }
        let _ = segment::decode(&bytes);
        match segment::decode_head(&bytes) {
            Ok(segment) => assert!(segment.entries.len() <= bytes.len()),
            Err(SegmentFault::Short(need)) => assert!(need > bytes.len() as u64),
            Err(_) => {}
        }
    }
}

#[test]
fn packs_of_any_bytes_are_refused_or_read() {
    let (mut rng, (_, sample, _)) = (rng(), samples());
    for round in 0..ROUNDS {
        let mut bytes = mutate(&mut rng, &sample);
        if round % 2 == 0 {
            bytes = with_sum(bytes, 32, 12);
        }
        match pack::decode_head(&bytes) {
            Ok(entries) => assert!(entries.len() <= bytes.len()),
            Err(PackFault::Short(need)) => assert!(need > bytes.len() as u64),
            Err(_) => {}
        }
    }
}

#[test]
fn manifests_of_any_bytes_are_refused_or_read() {
    let (mut rng, (.., sample)) = (rng(), samples());
    for _ in 0..ROUNDS / 4 {
        let _ = Manifest::decode(&mutate(&mut rng, &sample));
    }
}

#[test]
fn an_archive_of_damaged_objects_gives_errors_and_never_a_wrong_database() {
    let mut rng = rng();
    for _ in 0..300 {
        let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
        let archive = Archive::open_or_init(store.clone(), Options::default()).expect("an archive");
        let writer = Writer::seal(&archive, Epoch::new(1), NodeId::new(1)).expect("a writer");
        let set = first_change("a.db", 9);
        writer.put(std::slice::from_ref(&set)).expect("a put");
        if rng.random() {
            writer.upkeep(Occasion::Stopping, &()).expect("upkeep");
        }
        let keys = store.list("", None).expect("a list");
        let key = &keys[rng.random_range(0..keys.len())].key;
        let body = store.get(key).expect("reachable").expect("there").body;
        store.put(key, mutate(&mut rng, &body).into(), PutCond::Always).expect("a put");
        let sink = Seen(std::sync::atomic::AtomicU32::new(0));
        let restored = archive.head().and_then(|head| {
            let plan = archive.plan(&head, &set.db, litefs::archive::Target::Latest)?;
            archive.restore(&plan, &sink, &()).map(|()| plan)
        });
        if let Ok(plan) = restored {
            assert_eq!(plan.commit, sink.0.into_inner());
            assert_eq!(plan.pos, set.change.post);
        }
    }
}

struct Seen(std::sync::atomic::AtomicU32);

impl litefs::archive::PageSink for Seen {
    fn page(&self, pgno: Pgno, data: &[u8], _: PageSum) -> std::io::Result<()> {
        assert_eq!(data, [pgno.get().to_le_bytes()[0]; 512]);
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}
