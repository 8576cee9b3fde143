//! Looking into change sets, and working with them outside of a node: list, verify,
//! dump, convert, apply. Must not open files or print: it is given readers.
//!
//! What needs two looks (verify first, then act) needs a reader that can seek.

use std::io::{self, Read, Seek};

use super::{Codec, Decoder, Encoder, Fault, Finished, Form, HEADER_LEN, Header, Index, Located, LtxError};
use super::{TAIL_LEN, Trailer};
use crate::words::{Checksum, PageSize, PageSum, Pgno, Pos};

/// What a change set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// How many pages it has.
    pub pages: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Summary {
    /// Where a database stands after it; `None` in the untracked form.
    pub fn pos(&self) -> Option<Pos> {
        self.trailer.post.map(|checksum| Pos { txid: self.header.max, checksum })
    }
}

/// One page of a change set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// The page.
    pub pgno: Pgno,
    /// Its content.
    pub data: &'a [u8],
    /// What it adds to the database's checksum.
    pub sum: PageSum,
    /// The length of its compressed payload in bytes.
    pub compressed: usize,
}

/// What the header and the end of a file say, without reading (and so without
/// verifying) its pages. `size` is the file's.
///
/// # Errors
/// As of the decoder.
pub fn list(mut file: impl Read + Seek, size: u64) -> Result<Summary, LtxError> {
    let header = Header::parse(&read_at(&mut file, 0, size.min(HEADER_LEN as u64))?)?;
    let mut want = TAIL_LEN.min(size);
    loop {
        let tail = read_at(&mut file, size - want, want)?;
        match Index::from_tail(&header, &tail, size)? {
            Located::Index(index, trailer) => {
                return Ok(Summary { header, trailer, pages: index.len() as u64, size });
            }
            Located::NeedTail(more) if more > want && more <= size => want = more,
            Located::NeedTail(_) => {
                return Err(LtxError::Damaged { offset: size, fault: Fault::Index });
            }
        }
    }
}

fn read_at(file: &mut (impl Read + Seek), offset: u64, len: u64) -> Result<Vec<u8>, LtxError> {
    let failed = |source| LtxError::Read { offset, source };
    file.seek(io::SeekFrom::Start(offset)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 != len {
        return Err(LtxError::Damaged { offset, fault: Fault::Truncated });
    }
    Ok(bytes)
}

/// Reads a change set to its end and checks everything. The reader should be
/// buffered.
///
/// # Errors
/// As of the decoder.
pub fn verify(reader: impl Read) -> Result<Summary, LtxError> {
    dump(reader, |_| {})
}

/// As `verify`, and passes every page to `show`, also those of a file that is found
/// damaged only at its end.
///
/// # Errors
/// As of the decoder.
pub fn dump(reader: impl Read, mut show: impl FnMut(Page<'_>)) -> Result<Summary, LtxError> {
    let mut decoder = Decoder::new(reader)?;
    let (mut data, mut pages) = (Vec::new(), 0);
    while let Some(pgno) = decoder.next_page(&mut data)? {
        let (sum, compressed) = (PageSum::of(pgno, &data), decoder.payload().len());
        show(Page { pgno, data: &data, sum, compressed });
        pages += 1;
    }
    let header = decoder.header().clone();
    let (trailer, _, size) = decoder.finish_with_size()?;
    Ok(Summary { header, trailer, pages, size })
}

/// Which checksums a converted change set has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In header and trailer: ours.
    Tracked,
    /// In the reserved bytes: what Litestream restores, and we still verify.
    NoChecksum,
}

/// Writes the change set again with another codec or form.
///
/// # Errors
/// As of decoder and encoder; `Refused` for an untracked one, whose checksums nobody
/// knows.
pub fn convert<W: io::Write>(
    mut reader: impl Read + Seek,
    writer: W,
    codec: Codec,
    target: Target,
) -> Result<Finished<W>, LtxError> {
    let summary = verify(&mut reader)?;
    let post = summary.trailer.post.ok_or(LtxError::Refused(Fault::Untracked))?;
    rewind(&mut reader)?;
    let mut decoder = Decoder::new(reader)?;
    let form = match target {
        Target::Tracked => Form::Tracked,
        Target::NoChecksum => Form::NoChecksum { post },
    };
    let mut encoder = Encoder::new(writer, Header { codec, form, ..summary.header })?;
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        encoder.copy(pgno, &page, decoder.payload())?;
    }
    decoder.finish()?;
    encoder.finish(post)
}

/// A change set that could not be applied to a database.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It could not be read.
    #[error(transparent)]
    ChangeSet(#[from] LtxError),
    /// It belongs elsewhere in the chain, or to another database.
    #[error(
        "change set {first}-{last} begins after {needs}, but the database is at {has}; apply the change \
         sets of one database in their order, beginning with its snapshot"
    )]
    NotNext {
        /// Its first transaction.
        first: crate::words::Txid,
        /// Its last.
        last: crate::words::Txid,
        /// The checksum that the database must have before it.
        needs: Checksum,
        /// The checksum that it has.
        has: Checksum,
    },
    /// The pages have another size.
    #[error("the change set has pages of {change_set} bytes, the database of {database}")]
    PageSize {
        /// The change set's page size.
        change_set: PageSize,
        /// The database's.
        database: PageSize,
    },
    /// The database could not be written.
    #[error("writing page {pgno} of the database failed: {source}")]
    Write {
        /// The page.
        pgno: Pgno,
        /// Why.
        source: io::Error,
    },
}

/// Applies a change set to a database that has the checksum `before` and, if it has
/// pages, this page size: `write` is given each page. It is verified as a whole before
/// the first page is written. The caller then sets the file's length to
/// `commit * page_size` of the header and compares the database's checksum with the
/// trailer's.
///
/// # Errors
/// Nothing was written unless it is `Write`. A snapshot, and an untracked change set,
/// fit every database.
pub fn apply(
    mut reader: impl Read + Seek,
    before: Checksum,
    page_size: Option<PageSize>,
    mut write: impl FnMut(Pgno, &[u8]) -> io::Result<()>,
) -> Result<Summary, ApplyError> {
    let summary = verify(&mut reader)?;
    let header = &summary.header;
    if !header.is_snapshot() {
        if let Some(database) = page_size.filter(|size| *size != header.page_size) {
            return Err(ApplyError::PageSize { change_set: header.page_size, database });
        }
        if header.pre != before && header.form != Form::Untracked {
            let (first, last, needs) = (header.min, header.max, header.pre);
            return Err(ApplyError::NotNext { first, last, needs, has: before });
        }
    }
    rewind(&mut reader)?;
    let mut decoder = Decoder::new(reader)?;
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        write(pgno, &page).map_err(|source| ApplyError::Write { pgno, source })?;
    }
    decoder.finish()?;
    Ok(summary)
}

fn rewind(reader: &mut impl Seek) -> Result<(), LtxError> {
    reader.rewind().map_err(|source| LtxError::Read { offset: 0, source })
}

/// The number of pages and the checksum of a whole database, read from its begin to
/// its end; an incomplete page at the end does not count.
///
/// # Errors
/// Those of reading.
pub fn checksum_of(mut database: impl Read, page_size: PageSize) -> io::Result<(u32, Checksum)> {
    let (mut page, mut pages, mut sum) = (Vec::new(), 0, Checksum::EMPTY);
    loop {
        page.clear();
        (&mut database).take(u64::from(page_size.get())).read_to_end(&mut page)?;
        let Some(pgno) = Pgno::new(pages + 1).filter(|_| page.len() == page_size.len()) else {
            return Ok((pages, sum));
        };
        if pgno != page_size.lock_page() {
            sum = sum.toggle(PageSum::of(pgno, &page));
        }
        pages += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::words::{Timestamp, Txid};

    const SIZE: u32 = 512;

    fn page_size() -> PageSize {
        PageSize::new(SIZE).expect("a page size")
    }

    fn change_set(min: u64, commit: u32, pre: Checksum, pages: &[(u32, u8)], post: Checksum) -> Vec<u8> {
        let header = Header {
            page_size: page_size(),
            commit,
            min: Txid::new(min),
            max: Txid::new(min),
            timestamp: Timestamp::from_millis(5),
            pre,
            wal: None,
            node: 3,
            form: Form::Tracked,
            codec: Codec::Zstd { level: 1 },
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("sound");
        for (number, byte) in pages {
            let pgno = Pgno::new(*number).expect("not zero");
            encoder.page(pgno, &[*byte; SIZE as usize]).expect("sound");
        }
        encoder.finish(post).expect("sound").writer
    }

    fn image(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| [*byte; SIZE as usize]).collect()
    }

    fn sum(bytes: &[u8]) -> Checksum {
        checksum_of(image(bytes).as_slice(), page_size()).expect("memory").1
    }

    #[test]
    fn change_sets_apply_in_their_order_and_in_no_other() {
        let (one, two, three) = (sum(&[1, 2]), sum(&[1, 3, 4]), sum(&[1]));
        let sets = [
            change_set(1, 2, Checksum::EMPTY, &[(1, 1), (2, 2)], one),
            change_set(2, 3, one, &[(2, 3), (3, 4)], two),
            change_set(3, 1, two, &[], three),
        ];
        let mut database = Vec::new();
        for (at, set) in sets.iter().enumerate() {
            let (pages, before) = checksum_of(database.as_slice(), page_size()).expect("memory");
            let size = (pages > 0).then_some(page_size());
            for (other, wrong) in sets.iter().enumerate().skip(1).filter(|(other, _)| *other != at) {
                let found = apply(Cursor::new(wrong), before, size, |_, _| panic!("writes"));
                assert!(matches!(found, Err(ApplyError::NotNext { .. })), "{other} at {at}");
            }
            let mut grown = database.clone();
            let summary = apply(Cursor::new(set), before, size, |pgno, page| {
                let from = page_size().offset_of(pgno) as usize;
                grown.resize(grown.len().max(from + page.len()), 0);
                grown[from..from + page.len()].copy_from_slice(page);
                Ok(())
            })
            .expect("is next");
            grown.resize(summary.header.commit as usize * page_size().len(), 0);
            database = grown;
            let after = checksum_of(database.as_slice(), page_size()).expect("memory").1;
            assert_eq!(summary.trailer.post, Some(after));
            assert_eq!(summary.pos(), Some(Pos { txid: Txid::new(at as u64 + 1), checksum: after }));
        }
        assert_eq!(database, image(&[1]));
    }

    #[test]
    fn a_damaged_change_set_is_not_begun() {
        let set = change_set(1, 2, Checksum::EMPTY, &[(1, 1), (2, 2)], sum(&[1, 2]));
        let mut bad = set.clone();
        *bad.last_mut().expect("bytes") ^= 1;
        let found = apply(Cursor::new(&bad), Checksum::EMPTY, None, |_, _| panic!("writes"));
        assert!(matches!(found, Err(ApplyError::ChangeSet(LtxError::Damaged { .. }))));
    }

    #[test]
    fn listing_reads_only_the_ends_of_a_file_and_says_what_verifying_says() {
        let pages: Vec<_> = (1..=9000).map(|number| (number * 2, number as u8)).collect();
        let set = change_set(4, 20_000, sum(&[9]), &pages, sum(&[8]));
        let listed = list(Cursor::new(&set), set.len() as u64).expect("sound");
        assert_eq!(listed, verify(set.as_slice()).expect("sound"));
        assert_eq!((listed.pages, listed.size), (9000, set.len() as u64));
        for len in [0, 1, 99, 100, 130, set.len() - 1] {
            assert!(list(Cursor::new(&set[..len]), len as u64).is_err(), "{len}");
        }
    }

    #[test]
    fn converting_there_and_back_gives_the_same_file() {
        let set = change_set(1, 2, Checksum::EMPTY, &[(1, 1), (2, 2)], sum(&[1, 2]));
        let there = convert(Cursor::new(&set), Vec::new(), Codec::Lz4, Target::NoChecksum).expect("sound");
        let summary = verify(there.writer.as_slice()).expect("sound");
        assert_eq!(summary.header.codec, Codec::Lz4);
        assert_eq!(summary.header.form, Form::NoChecksum { post: sum(&[1, 2]) });
        let codec = Codec::Zstd { level: 1 };
        let back = convert(Cursor::new(&there.writer), Vec::new(), codec, Target::Tracked).expect("sound");
        assert_eq!(back.writer, set);
    }

    #[test]
    fn every_page_is_shown() {
        let set = change_set(7, 9, sum(&[9]), &[(3, 7), (9, 8)], sum(&[8]));
        let mut seen = Vec::new();
        dump(set.as_slice(), |page| {
            assert_eq!(page.sum, PageSum::of(page.pgno, page.data));
            assert!(page.compressed > 0 && page.compressed < 100);
            seen.push((page.pgno.get(), page.data.first().copied()));
        })
        .expect("sound");
        assert_eq!(seen, [(3, Some(7)), (9, Some(8))]);
    }
}
