//! Tests of the format as a whole. Must not need files.

use proptest::prelude::*;

use super::*;
use crate::words::{Checksum, PageSize, PageSum, Pgno, Timestamp, Txid};

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).expect("not zero")
}

fn header(min: u64, max: u64, commit: u32, form: Form, codec: Codec) -> Header {
    Header {
        page_size: PageSize::new(512).expect("a page size"),
        commit,
        min: Txid::new(min),
        max: Txid::new(max),
        timestamp: Timestamp::from_millis(1_700_000_000_123),
        pre: Checksum::EMPTY,
        wal: None,
        node: 0,
        form,
        codec,
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ascii"), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

const GOLDEN_TAIL: &str = "000000000000 016422 028601 22 00 0000000000000008";

/// facts: LTX §1.13, verified by superfly's reader.
fn golden() -> Vec<u8> {
    let mut bytes =
        hex("4c545831 00000002 00000200 00000002 0000000000000001 0000000000000001 0000018bcfe5687b");
    bytes.resize(100, 0);
    bytes.extend(hex("00000001 0001 00000018 1f110100ffda000200000200b01111111111111111111111"));
    bytes.extend(hex("00000002 0001 00000018 1f220100ffda000200000200b02222222222222222222222"));
    bytes.extend(hex(GOLDEN_TAIL));
    bytes.extend(hex("0000000000000000 a4d192d585f1f6a1"));
    bytes
}

fn encode(header: &Header, pages: &[(u32, Vec<u8>)], post: Checksum) -> Result<Vec<u8>, LtxError> {
    let mut encoder = Encoder::new(Vec::new(), header.clone())?;
    for (number, page) in pages {
        encoder.page(pgno(*number), page)?;
    }
    let finished = encoder.finish(post)?;
    assert_eq!(finished.size, finished.writer.len() as u64);
    Ok(finished.writer)
}

type Decoded = (Header, Vec<(u32, Vec<u8>)>, Trailer);

fn decode(bytes: &[u8]) -> Result<Decoded, LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno.get(), page.clone()));
    }
    let header = decoder.header().clone();
    Ok((header, pages, decoder.finish()?))
}

fn fault(result: Result<Decoded, LtxError>) -> Fault {
    match result {
        Err(LtxError::Damaged { fault, .. }) => fault,
        other => panic!("not damaged: {other:?}"),
    }
}

fn two_pages() -> Vec<(u32, Vec<u8>)> {
    vec![(1, vec![0x11; 512]), (2, vec![0x22; 512])]
}

const BOTH: u64 = 0xa2d3_ccd0_0000_0000;

fn both() -> Checksum {
    Checksum::from_stored(BOTH).expect("bit 63")
}

#[test]
fn golden_vector_of_the_go_implementation_is_read() {
    let (header, pages, trailer) = decode(&golden()).expect("sound");
    assert_eq!(header, self::header(1, 1, 2, Form::Untracked, Codec::Lz4));
    assert_eq!(pages, two_pages());
    assert_eq!(trailer, Trailer { post: None, file_sum: 0xa4d1_92d5_85f1_f6a1 });
}

#[test]
fn what_we_write_with_gos_lz4_bytes_is_the_golden_vector() {
    let copy = |form, post| {
        let (golden, mut page) = (golden(), Vec::new());
        let mut decoder = Decoder::new(golden.as_slice()).expect("sound");
        let mut encoder = Encoder::new(Vec::new(), header(1, 1, 2, form, Codec::Lz4)).expect("sound");
        while let Some(pgno) = decoder.next_page(&mut page).expect("sound") {
            encoder.copy(pgno, &page, decoder.payload()).expect("sound");
        }
        encoder.finish(post).expect("sound").writer
    };
    assert_eq!(copy(Form::Untracked, Checksum::EMPTY), golden());
    let tracked = copy(Form::Tracked, both());
    assert!(tracked.ends_with(&hex("a2d3ccd000000000 b7e72feb3e4e180a")));
    assert_eq!(decode(&tracked).expect("sound").2.post, Some(both()));
}

#[test]
fn our_checksums_ride_where_litestream_does_not_look() {
    let form = Form::NoChecksum { post: both() };
    let bytes = encode(&header(1, 1, 2, form, Codec::Lz4), &two_pages(), both()).expect("sound");
    assert_eq!(bytes.get(40..48), Some([0; 8].as_slice()));
    assert!(bytes.get(..bytes.len() - 8).expect("long enough").ends_with(&[0; 8]));
    let (header, _, trailer) = decode(&bytes).expect("sound");
    assert_eq!((header.form, header.pre, trailer.post), (form, Checksum::EMPTY, Some(both())));
}

#[test]
fn a_dropped_database_is_said_only_with_checksums() {
    let drop = Header { pre: both(), ..header(5, 5, 0, Form::Tracked, Codec::Lz4) };
    let bytes = encode(&drop, &[], Checksum::EMPTY).expect("sound");
    assert_eq!(decode(&bytes).expect("sound").0, drop);
    assert!(encode(&drop, &[], both()).is_err());
    for form in [Form::Untracked, Form::NoChecksum { post: Checksum::EMPTY }] {
        let drop = header(5, 5, 0, form, Codec::Lz4);
        assert!(matches!(encode(&drop, &[], Checksum::EMPTY), Err(LtxError::Refused(Fault::Dropped))));
    }
}

#[test]
fn a_page_frame_of_older_litestream_is_read() {
    use std::io::Write;
    let page: Vec<u8> = (0..512u32).map(|i| (i * i % 251) as u8).collect();
    let info = lz4_flex::frame::FrameInfo::new()
        .block_size(lz4_flex::frame::BlockSize::Max64KB)
        .content_checksum(true);
    let mut frame = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    frame.write_all(&page).expect("memory");
    let frame = frame.finish().expect("memory");
    let header = header(1, 1, 1, Form::Tracked, Codec::Lz4);
    let post = Checksum::EMPTY.toggle(PageSum::of(Pgno::FIRST, &page));

    let mut digest = file_digest();
    let mut bytes = header.to_bytes().to_vec();
    digest.update(&bytes);
    bytes.extend(hex("00000001 0000"));
    digest.update(&hex("00000001 0000"));
    bytes.extend(&frame);
    digest.update(&page);
    let size = 6 + frame.len() as u64;
    assert!((128..16384).contains(&size), "two bytes of a varint: {size}");
    let mut tail = hex("000000000000 0164");
    tail.extend([(size & 0x7f) as u8 | 0x80, (size >> 7) as u8, 0]);
    tail.extend(5u64.to_be_bytes());
    tail.extend(post.get().to_be_bytes());
    digest.update(&tail);
    bytes.extend(&tail);
    bytes.extend(file_sum(&digest).to_be_bytes());

    assert_eq!(decode(&bytes).expect("sound").1, vec![(1, page.clone())]);
    let frame = bytes.get(100..100 + size as usize).expect("in range");
    let mut single = Vec::new();
    let payload = FrameDecoder::new(header.clone()).decode(Pgno::FIRST, frame, &mut single).expect("sound");
    assert_eq!(single, page);
    let mut encoder = Encoder::new(Vec::new(), header).expect("sound");
    encoder.copy(Pgno::FIRST, &page, payload).expect("is recompressed");
    let copied = encoder.finish(post).expect("sound").writer;
    assert_eq!(copied.get(104..106), Some(FLAG_SIZED.to_be_bytes().as_slice()));
    assert_eq!(decode(&copied).expect("sound").1, vec![(1, page)]);
}

#[test]
fn pages_must_ascend_and_stay_in_the_database() {
    let page = vec![0; 512];
    let start = Header { pre: both(), ..header(2, 2, 4_000_000, Form::Tracked, Codec::Lz4) };
    for (numbers, expected) in [
        (vec![2, 2], Fault::Order(pgno(2), pgno(2))),
        (vec![3, 2], Fault::Order(pgno(2), pgno(3))),
        (vec![4_000_001], Fault::BeyondEnd(4_000_001, 4_000_000)),
        (vec![2_097_153], Fault::LockPage(pgno(2_097_153))),
    ] {
        let pages: Vec<_> = numbers.into_iter().map(|number| (number, page.clone())).collect();
        match encode(&start, &pages, both()) {
            Err(LtxError::Refused(fault)) => assert_eq!(fault, expected),
            other => panic!("not refused: {other:?}"),
        }
    }
    let short = encode(&start, &[(1, vec![0; 511])], both());
    assert!(matches!(short, Err(LtxError::Refused(Fault::PageLen(_, 511)))));
}

#[test]
fn a_snapshot_must_have_every_page_and_the_checksum_of_its_pages() {
    let snapshot = header(1, 9, 2, Form::Tracked, Codec::Lz4);
    let refused = |pages: &[(u32, Vec<u8>)], post| match encode(&snapshot, pages, post) {
        Err(LtxError::Refused(fault)) => fault,
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(refused(&two_pages()[..1], both()), Fault::Missing(pgno(2)));
    assert_eq!(refused(&two_pages()[1..], both()), Fault::Missing(pgno(1)));
    assert!(matches!(refused(&two_pages(), Checksum::EMPTY), Fault::RollingSum { .. }));
}

#[test]
fn damage_is_found_wherever_a_byte_is_changed() {
    for codec in [Codec::Lz4, Codec::Zstd { level: 1 }] {
        let sound = encode(&header(1, 1, 2, Form::Tracked, codec), &two_pages(), both()).expect("sound");
        let mut harmless = Vec::new();
        for at in 0..sound.len() {
            for bit in 0..8 {
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << bit;
                match decode(&bytes) {
                    // A changed payload that gives the same page.
                    Ok((_, pages, _)) => {
                        assert_eq!(pages, two_pages());
                        harmless.push(at);
                    }
                    Err(error) => assert!(error.is_damage(), "{error}"),
                }
            }
        }
        assert!(harmless.iter().all(|at| *at >= 110), "{codec:?}: {harmless:?}");
    }
}

#[test]
fn every_truncation_and_every_extra_byte_is_found() {
    for sound in
        [golden(), encode(&header(1, 1, 2, Form::Tracked, Codec::Lz4), &two_pages(), both()).expect("sound")]
    {
        for len in 0..sound.len() {
            assert_eq!(fault(decode(&sound[..len])), Fault::Truncated, "{len}");
        }
        let mut longer = sound.clone();
        longer.push(0);
        assert_eq!(fault(decode(&longer)), Fault::Trailing);
    }
}

#[test]
fn an_index_that_is_not_what_the_frames_are_is_found() {
    // The file checksum covers the index: a wrong index under a right checksum is
    // what superfly's `ltx verify` accepts.
    let golden = golden();
    let mut bytes = golden.get(..golden.len() - 38).expect("long").to_vec();
    let frames = bytes.len();
    bytes.extend(hex("000000000000 016422 028701 22 00 0000000000000008 0000000000000000"));
    assert_eq!(bytes.len() + 8, golden.len());
    let mut digest = file_digest();
    digest.update(&bytes[..110]);
    digest.update(&[0x11; 512]);
    digest.update(&bytes[134..144]);
    digest.update(&[0x22; 512]);
    digest.update(&bytes[frames..]);
    bytes.extend(file_sum(&digest).to_be_bytes());
    assert_eq!(fault(decode(&bytes)), Fault::Index);
    let header = Header::parse(&bytes).expect("sound");
    assert!(Index::from_tail(&header, &bytes, bytes.len() as u64).is_err());
}

#[test]
fn the_index_is_found_from_the_end_of_the_file() {
    let bytes = golden();
    let size = bytes.len() as u64;
    let header = Header::parse(&bytes).expect("sound");
    let tail = |len: usize| Index::from_tail(&header, &bytes[bytes.len() - len..], size);
    assert!(matches!(tail(0), Ok(Located::NeedTail(206))));
    assert!(matches!(tail(24), Ok(Located::NeedTail(32))));
    for len in [32, 60, 206] {
        let Ok(Located::Index(index, trailer)) = tail(len) else { panic!("not found in {len}") };
        assert_eq!(trailer.file_sum, 0xa4d1_92d5_85f1_f6a1);
        let entries: Vec<_> = index.iter().map(|(page, offset, len)| (page.get(), offset, len)).collect();
        assert_eq!(entries, vec![(1, 100, 34), (2, 134, 34)]);
        assert_eq!((index.find(pgno(2)), index.find(pgno(3))), (Some((134, 34)), None));
    }
    let mut page = Vec::new();
    let mut frames = FrameDecoder::new(header);
    frames.decode(pgno(2), &bytes[134..168], &mut page).expect("sound");
    assert_eq!(page, vec![0x22; 512]);
    assert!(frames.decode(pgno(1), &bytes[134..168], &mut page).is_err());
    assert!(frames.decode(pgno(2), &bytes[134..167], &mut page).is_err());
}

#[test]
fn unknown_header_flags_are_refused_by_name() {
    let mut bytes = golden();
    bytes[7] = 0x04;
    assert!(matches!(decode(&bytes), Err(LtxError::UnknownFlags(4))));
    let zstd = encode(&header(1, 1, 2, Form::Tracked, Codec::Zstd { level: 3 }), &two_pages(), both());
    assert_eq!(zstd.expect("sound").get(4..8), Some([1, 0, 0, 0].as_slice()));
}

fn any_header() -> impl Strategy<Value = Header> {
    let codec = prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd { level: 1 })];
    let sum = any::<u64>().prop_filter_map("bit 63", |sum| Checksum::from_stored(sum | 1 << 63));
    let form = prop_oneof![Just(0), Just(1), Just(2)];
    let wal = proptest::option::of((1..i64::MAX as u64, 0..i64::MAX as u64, any::<[u32; 2]>()));
    let txids = (1..20u64, 0..9u64);
    (codec, sum.clone(), sum, form, wal, txids, any::<i64>(), any::<u64>(), 9..=13u32).prop_map(
        |(codec, pre, post, form, wal, (min, more), time, node, page)| {
            let form = match form {
                0 => Form::Tracked,
                1 => Form::NoChecksum { post },
                _ => Form::Untracked,
            };
            Header {
                page_size: PageSize::new(1 << page).expect("a page size"),
                timestamp: Timestamp::from_millis(time),
                pre: if min == 1 || form == Form::Untracked { Checksum::EMPTY } else { pre },
                wal: wal.map(|(offset, size, salt)| WalRange { offset, size, salt }),
                node,
                ..header(min, min + more, 0, form, codec)
            }
        },
    )
}

/// Pages like SQLite's: runs and some noise.
fn any_page(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len)
        .map(|at| if seed.is_multiple_of(3) || at.is_multiple_of(7) { noise() } else { (at / 50) as u8 })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(mut header in any_header(), seeds in proptest::collection::vec(any::<u64>(), 1..12)) {
        let len = header.page_size.len();
        let step = if header.is_snapshot() { 1 } else { 3 };
        let pages: Vec<_> =
            (0u32..).zip(&seeds).map(|(at, seed)| (1 + at * step, any_page(len, *seed))).collect();
        header.commit = pages.last().map_or(1, |(number, _)| *number);
        let mut post = Checksum::EMPTY;
        for (number, page) in &pages {
            post = post.toggle(PageSum::of(pgno(*number), page));
        }
        if let Form::NoChecksum { post: stated } = &mut header.form {
            *stated = post;
        }
        let bytes = encode(&header, &pages, post).expect("sound");
        let (read, found, trailer) = decode(&bytes).expect("sound");
        let level = Codec::Zstd { level: 0 };
        let codec = if header.codec == Codec::Lz4 { Codec::Lz4 } else { level };
        prop_assert_eq!(&read, &Header { codec, ..header.clone() });
        prop_assert_eq!(&found, &pages);
        prop_assert_eq!(trailer.post, (header.form != Form::Untracked).then_some(post));

        // Copying compressed pages gives the same file; single frames are found.
        let Ok(Located::Index(index, _)) = Index::from_tail(&read, &bytes, bytes.len() as u64) else {
            return Err(TestCaseError::fail("no index"));
        };
        let (mut frames, mut page) = (FrameDecoder::new(read), Vec::new());
        let mut copy = Encoder::new(Vec::new(), header).expect("sound");
        for (number, expected) in &pages {
            let (offset, len) = index.find(pgno(*number)).expect("is there");
            let frame = bytes.get(offset as usize..(offset + len) as usize).expect("in range");
            let payload = frames.decode(pgno(*number), frame, &mut page).expect("sound");
            prop_assert_eq!(&page, expected);
            copy.copy(pgno(*number), &page, payload).expect("sound");
        }
        prop_assert_eq!(copy.finish(post).expect("sound").writer, bytes);
    }
}
