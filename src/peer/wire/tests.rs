//! Frames go over and come back, in pieces of any size; what is none is refused.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::words::{Checksum, ClusterId, DbName, Epoch, NodeId, PageSize, Pos, Timestamp, Txid};

fn pos(txid: u64) -> Pos {
    Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | txid).expect("bit 63 is set") }
}

fn db(name: &str) -> DbName {
    DbName::new(name).expect("a name")
}

fn change() -> ChangeHead {
    ChangeHead {
        db: db("tenants/a b.db"),
        pre: pos(6),
        post: pos(7),
        page_size: PageSize::new(65536).expect("a page size"),
        commit: 9,
        pages: 2,
        timestamp: Timestamp::from_millis(-5),
    }
}

fn ups() -> Vec<Up> {
    let (cluster, node) = (ClusterId::new(u64::MAX), NodeId::new(3));
    vec![
        Up::Hello(Hello { cluster, node, hostname: "ünï".to_owned() }),
        Up::At(vec![]),
        Up::At(
            (0..MAX_POSITIONS)
                .map(|i| (db(&["x".repeat(240 - i % 3), "y".repeat(240)].join("/")), pos(i as u64)))
                .collect(),
        ),
        Up::Ready,
        Up::Beat,
    ]
}

fn downs() -> Vec<Down> {
    let (cluster, node, epoch) = (ClusterId::new(1), NodeId::new(2), Epoch::new(3));
    let dropped = Pos { checksum: Checksum::EMPTY, ..pos(7) };
    vec![
        Down::Welcome(Welcome { cluster, node, epoch, hostname: String::new() }),
        Down::Change(change()),
        Down::Change(ChangeHead { commit: 0, pages: 0, post: dropped, ..change() }),
        Down::Data(Bytes::from(vec![7; MAX_DATA])),
        Down::Done(u64::MAX),
        Down::Beat(Beat { at: Duration::from_millis(1234), wall: Timestamp::from_millis(5) }),
        Down::Archived(vec![(db("a"), pos(1)), (db("b"), Pos::ZERO)]),
        Down::Settle { db: db("a"), pos: pos(8) },
        Down::End(Ending::Stopping),
        Down::End(Ending::NotPrimary),
        Down::End(Ending::Handoff),
        Down::End(Ending::Replaced),
    ]
}

fn cross<M: Message + PartialEq + std::fmt::Debug>(sent: &[M], piece: usize) {
    let mut bytes = Vec::new();
    sent.iter().for_each(|frame| frame.write(&mut bytes));
    let (mut decoder, mut came) = (Decoder::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        while let Some(frame) = decoder.take_frame::<M>().expect("sound") {
            came.push(frame);
        }
    }
    assert_eq!((came.as_slice(), decoder.pending()), (sent, 0));
}

#[test]
fn frames_cross_whatever_pieces_they_come_in() {
    for piece in [1, 3, 7, 1000, usize::MAX >> 1] {
        cross(&ups(), piece);
        cross(&downs(), piece);
    }
}

fn refused<M: Message + std::fmt::Debug>(bytes: &[u8]) -> Fault {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    decoder.take_frame::<M>().expect_err("it is no frame")
}

fn bytes_of(frame: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.write(&mut bytes);
    bytes
}

#[test]
fn a_length_is_refused_before_it_is_believed() {
    let mut bytes = bytes_of(&Up::Ready);
    bytes[1..5].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_be_bytes());
    assert_eq!(refused::<Up>(&bytes), Fault::TooLong { kind: 3, len: MAX_PAYLOAD as u32 + 1 });
}

#[test]
fn each_direction_has_its_own_frames() {
    assert_eq!(refused::<Down>(&bytes_of(&Up::Ready)), Fault::Kind(3));
    assert_eq!(refused::<Up>(&bytes_of(&Down::Done(1))), Fault::Kind(67));
    assert_eq!(refused::<Up>(b"GET / HTTP/1.1\r\n"), Fault::TooLong { kind: b'G', len: 0x4554_202f });
}

#[test]
fn another_version_is_told_apart_from_garbage() {
    let mut bytes = bytes_of(&ups()[0]);
    bytes[10] = 9;
    assert_eq!(refused::<Up>(&bytes), Fault::Version(9));
    bytes[5] = b'X';
    assert_eq!(refused::<Up>(&bytes), Fault::NotAStream);
    let mut bytes = bytes_of(&downs()[0]);
    bytes[10] = 0;
    assert_eq!(refused::<Down>(&bytes), Fault::Version(0));
}

#[test]
fn payloads_that_are_longer_or_shorter_are_refused() {
    fn each<M: Message + std::fmt::Debug>(frames: &[M]) {
        for frame in frames.iter().map(bytes_of) {
            let payload = frame.len() - 5;
            let with = |len: usize| {
                let mut bytes = frame.clone();
                bytes.resize(5 + len, 0);
                bytes[1..5].copy_from_slice(&(len as u32).to_be_bytes());
                let mut decoder = Decoder::new();
                decoder.push(&bytes);
                decoder.take_frame::<M>()
            };
            // Data of any length but none is sound.
            let is_data = frame[0] == 66;
            assert!(is_data || payload == MAX_PAYLOAD || with(payload + 1).is_err());
            assert!(is_data || payload == 0 || with(payload - 1).is_err());
        }
    }
    each(&ups());
    each(&downs());
}

#[test]
fn change_sets_that_contradict_themselves_are_refused() {
    let good = change();
    for bad in [
        ChangeHead { post: good.pre, ..good.clone() },
        ChangeHead { pages: good.commit + 1, ..good.clone() },
        ChangeHead { commit: 0, pages: 0, ..good.clone() },
    ] {
        assert!(!bad.is_sound());
        assert_eq!(refused::<Down>(&bytes_of(&Down::Change(bad))), Fault::Payload(65));
    }
}

#[test]
fn names_that_leave_the_mount_are_refused() {
    let mut bytes = bytes_of(&Down::Settle { db: db("aabcc"), pos: pos(1) });
    let at = bytes.windows(5).position(|part| part == b"aabcc").expect("the name");
    bytes[at..at + 5].copy_from_slice(b"../cc");
    assert_eq!(refused::<Down>(&bytes), Fault::Payload(70));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let hostname = "ü".repeat(MAX_TEXT);
    let hello = Up::Hello(Hello { cluster: ClusterId::new(1), node: NodeId::new(1), hostname });
    let mut decoder = Decoder::new();
    decoder.push(&bytes_of(&hello));
    let Ok(Some(Up::Hello(hello))) = decoder.take_frame() else { panic!("a hello") };
    assert_eq!(hello.hostname.len(), MAX_TEXT);
}
