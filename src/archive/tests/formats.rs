//! Bytes of segments, packs and the manifest.

use crate::archive::{Change, Manifest, SegmentFault, keys, pack, segment};
use crate::words::{ClusterId, DbName, Timestamp};

use super::model::{Bed, Model};

#[test]
fn a_segment_is_read_from_its_head_as_from_the_whole() {
    let bed = Bed::new();
    let writer = bed.writer(1);
    let mut model = Model::new("a.db", 1);
    let sets: Vec<_> = (0..50).map(|_| model.commit(bed.tick())).collect();
    let seq = writer.put(&sets).expect("a put");
    let body = bed.store.get(&keys::segment(seq)).expect("reachable").expect("there").body;
    let whole = segment::decode(&body).expect("a segment");
    assert_eq!(whole.entries.len(), 50);
    assert_eq!(whole.size, body.len() as u64);
    for len in [0, 8, 50, 96, 1000] {
        let Err(SegmentFault::Short(need)) = segment::decode_head(&body[..len]) else { panic!("{len}") };
        let read = usize::try_from(need).expect("small").max(len + 1);
        if let Ok(head) = segment::decode_head(&body[..read]) {
            assert_eq!(head, whole);
        }
    }
    assert!(segment::decode(&body[..body.len() - 1]).is_err());
}

#[test]
fn a_pack_gives_back_what_was_packed() {
    let bed = Bed::new();
    let mut model = Model::new("a.db", 1);
    let changes: Vec<(Change, bytes::Bytes)> = (0..20)
        .map(|_| model.commit(bed.tick()))
        .filter_map(|set| match set.body {
            crate::archive::Body::Bytes(ltx) => Some((set.change, ltx)),
            crate::archive::Body::File(_) => None,
        })
        .collect();
    let bytes = pack::encode(&model.db, &changes);
    let entries = pack::decode_head(&bytes).expect("a pack");
    assert_eq!(entries.len(), changes.len());
    for (entry, (change, ltx)) in entries.iter().zip(&changes) {
        assert_eq!((&entry.db, &entry.change), (&model.db, change));
        let crate::archive::Place::Here { offset, len } = entry.place else { panic!("inline") };
        let at = usize::try_from(offset).expect("small");
        assert_eq!(&bytes[at..at + usize::try_from(len).expect("small")], ltx.as_ref());
    }
}

#[test]
fn a_manifest_reads_back_and_a_newer_one_is_refused() {
    let manifest = Manifest::new(ClusterId::new(5), u64::MAX, Timestamp::from_millis(1));
    let bytes = manifest.encode().expect("bytes");
    assert_eq!(Manifest::decode(&bytes).expect("a manifest"), manifest);
    let newer = String::from_utf8(bytes).expect("text").replace("\"version\":1", "\"version\":2");
    let error = Manifest::decode(newer.as_bytes()).expect_err("newer");
    assert!(error.to_string().contains("use a newer one"), "{error}");
    assert!(DbName::new("a").is_ok());
}
