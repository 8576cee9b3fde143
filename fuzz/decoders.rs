//! Every decoder of src/ltx, src/sqlite and src/peer/wire as a function that takes any bytes and
//! panics if a rule is broken. Used by `tests/fuzz_decoders.rs` (random inputs, on
//! every run) and by the libFuzzer targets beside this file.
#![allow(dead_code, reason = "each libFuzzer target uses one of them")]

use std::io;

use litefs::ltx::{self, Decoder, Encoder, FrameDecoder, Header, Index, Located, LtxError};
use litefs::peer::wire::{self, Down, Message, Up};
use litefs::sqlite::journal::{self, Playback};
use litefs::sqlite::wal::{Authority, WalHeader, next_transaction};
use litefs::sqlite::wal_index::WalIndex;
use litefs::sqlite::{freelist, header};
use litefs::words::{Checksum, PageSize, Pgno};

/// A decoder under test, by name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("ltx_file", ltx_file),
    ("ltx_tail", ltx_tail),
    ("ltx_frame", ltx_frame),
    ("database", database),
    ("rollback_journal", rollback_journal),
    ("wal", wal),
    ("names", names),
    ("stream", stream),
];

type Pages = Vec<(Pgno, Vec<u8>)>;

fn decode(bytes: &[u8]) -> Result<(Header, Pages, ltx::Trailer, Index), LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page)? {
        assert_eq!(page.len(), decoder.header().page_size.len());
        pages.push((pgno, page.clone()));
    }
    let header = decoder.header().clone();
    let (trailer, index) = decoder.finish_with_index()?;
    Ok((header, pages, trailer, index))
}

/// A file that is accepted can be read page by page through its index, and written
/// again with the same content.
pub fn ltx_file(bytes: &[u8]) {
    let Ok((header, pages, trailer, index)) = decode(bytes) else { return };
    let tail = Index::from_tail(&header, bytes, bytes.len() as u64);
    assert!(matches!(tail, Ok(Located::Index(found, end)) if found == index && end == trailer));
    let post = trailer.post.unwrap_or(Checksum::EMPTY);
    let mut frames = FrameDecoder::new(header.clone());
    let mut copy = Encoder::new(Vec::new(), header.clone()).expect("an accepted header is written");
    let mut page = Vec::new();
    for (pgno, expected) in &pages {
        let (offset, len) = index.find(*pgno).expect("an accepted page is in the index");
        let frame = &bytes[offset as usize..(offset + len) as usize];
        let payload = frames.decode(*pgno, frame, &mut page).expect("an accepted frame is read alone");
        assert_eq!(&page, expected);
        copy.copy(*pgno, &page, payload).expect("an accepted page is written");
    }
    let copied = copy.finish(post).expect("accepted content is written").writer;
    let again = decode(&copied).expect("what is written is accepted");
    assert_eq!((again.0, again.1, again.2.post), (header, pages, trailer.post));
}

/// The last bytes of a file, after its header.
pub fn ltx_tail(bytes: &[u8]) {
    let Some((head, tail)) = bytes.split_at_checked(ltx::HEADER_LEN) else { return };
    let Ok(header) = Header::parse(head) else { return };
    for file_size in [bytes.len() as u64, tail.len() as u64, tail.len() as u64 + 4096, u64::MAX] {
        match Index::from_tail(&header, tail, file_size) {
            Ok(Located::Index(index, _)) => {
                assert!(index.len() <= tail.len());
                let mut end = ltx::HEADER_LEN as u64;
                for (pgno, offset, len) in index.iter() {
                    assert_eq!((offset, index.find(pgno)), (end, Some((offset, len))));
                    end = offset + len;
                }
                assert!(end < file_size);
            }
            Ok(Located::NeedTail(need)) => {
                assert!(need > tail.len() as u64 && need <= file_size || tail.len() as u64 > file_size);
            }
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
    }
}

/// One frame, after a header.
pub fn ltx_frame(bytes: &[u8]) {
    let Some((head, frame)) = bytes.split_at_checked(ltx::HEADER_LEN) else { return };
    let Ok(header) = Header::parse(head) else { return };
    let pgno = frame.first_chunk().map(|word| u32::from_be_bytes(*word)).and_then(Pgno::new);
    let mut page = Vec::new();
    let size = header.page_size.len();
    if FrameDecoder::new(header).decode(pgno.unwrap_or(Pgno::FIRST), frame, &mut page).is_ok() {
        assert_eq!(page.len(), size);
    }
}

/// A database file: its header and its freelist.
pub fn database(bytes: &[u8]) {
    assert_eq!(header::is_database(bytes), header::Header::parse(bytes).is_some());
    let Some(header) = header::Header::parse(bytes) else { return };
    assert!(header.usable() >= 480);
    let pages = (bytes.len() / header.page_size.len()) as u32;
    for pages in [pages, u32::MAX] {
        let list = freelist::walk(&header, pages, |pgno, page| {
            let at = header.page_size.offset_of(pgno) as usize;
            let from = bytes.get(at..).and_then(|rest| rest.get(..page.len()));
            page.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        });
        if let Ok(list) = list {
            assert!(list.leaves.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!((list.leaves.len() + list.trunks.len()) as u32, header.free_pages);
        }
    }
}

/// A rollback journal.
pub fn rollback_journal(bytes: &[u8]) {
    let page_size = PageSize::new(1024).expect("a page size");
    for len in [bytes.len() as u64, bytes.len() as u64 / 2, u64::MAX] {
        if let Ok(Some(name)) = journal::super_journal(bytes, len) {
            assert!(journal::is_super_name(&name) && name.len() <= bytes.len());
        }
        let Ok(Some(mut playback)) = Playback::open(bytes, len, page_size) else { continue };
        assert!(journal::looks_hot(bytes));
        let (mut page, mut count) = (Vec::new(), 0);
        while let Ok(Some(record)) = playback.next_record(&mut page) {
            assert!(record.pgno.get() <= playback.pages());
            assert_eq!(page.len(), playback.page_size().len());
            count += 1;
            assert!(count * page.len() <= bytes.len(), "more records than bytes");
        }
    }
}

/// A WAL and a wal-index.
pub fn wal(bytes: &[u8]) {
    let _ = WalIndex::parse(bytes);
    let Some(header) = WalHeader::parse(bytes) else { return };
    assert_eq!(bytes.get(..32), Some(header.to_bytes().as_slice()));
    let frames = (bytes.len() as u64 / header.frame_len()) as u32;
    for authority in [Authority::Chain, Authority::Index(frames), Authority::Index(u32::MAX)] {
        for from in [0, 1, frames] {
            let Ok(Some(mut cursor)) = header.after(bytes, from) else { continue };
            while let Ok(Some(found)) = next_transaction(bytes, &header, cursor, authority) {
                assert!(found.end.frames > cursor.frames && found.end.frames <= frames);
                assert!(found.pages.windows(2).all(|pair| pair[0].0 < pair[1].0));
                assert!(found.pages.iter().all(|(pgno, at)| {
                    pgno.get() <= found.commit && at + u64::from(header.page_size.get()) <= bytes.len() as u64
                }));
                assert!(!found.broken || authority != Authority::Chain);
                cursor = found.end;
            }
        }
    }
}

/// What comes over a stream between nodes, in either direction.
pub fn stream(bytes: &[u8]) {
    frames::<Up>(bytes);
    frames::<Down>(bytes);
}

/// What is accepted is written again as it was; in whatever pieces it comes.
fn frames<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let (mut decoder, mut written, mut whole) = (wire::Decoder::new(), Vec::new(), Vec::new());
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.take_frame::<M>() {
        frame.write(&mut written);
        whole.push(frame);
    }
    assert_eq!(bytes.get(..written.len()), Some(written.as_slice()));
    let (mut decoder, mut pieces) = (wire::Decoder::new(), Vec::new());
    for piece in bytes.chunks(7) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.take_frame::<M>() {
            pieces.push(frame);
        }
        if pieces.len() == whole.len() {
            break;
        }
    }
    assert_eq!(pieces, whole);
}

/// A file name.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some((min, max)) = ltx::parse_name(&text) {
        assert_eq!(ltx::format_name(min, max), text);
    }
}
