//! The simulated database: a list of numbers, one transaction a number. Must not know
//! the archive.

use std::collections::BTreeMap;
use std::io;

use parking_lot::Mutex;

use crate::archive::{ChangeSet, PageSink};
use crate::ltx::{Codec, Encoder, Form, Header};
use crate::words::{Checksum, DbName, PageSize, PageSum, Pgno, Pos, Timestamp};

const PAGE: u32 = 512;
const PER_PAGE: usize = 64;

/// The list, and its position.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    pub numbers: Vec<u64>,
    pub pos: Pos,
}

fn pgno(at: usize) -> Pgno {
    u32::try_from(at + 1).ok().and_then(Pgno::new).expect("a small list")
}

fn page(numbers: &[u64]) -> Vec<u8> {
    let mut page: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    page.resize(PAGE as usize, 0);
    page
}

impl List {
    /// Appends a number: one transaction.
    pub fn push(&mut self, db: &DbName, number: u64, now: Timestamp) -> ChangeSet {
        let at = self.numbers.len() / PER_PAGE;
        let before = self.numbers.get(at * PER_PAGE..).unwrap_or_default();
        let old = (!before.is_empty()).then(|| PageSum::of(pgno(at), &page(before)));
        self.numbers.push(number);
        let page = page(&self.numbers[at * PER_PAGE..]);
        let pre = self.pos;
        let checksum = if pre == Pos::ZERO { Checksum::EMPTY } else { pre.checksum };
        let checksum = checksum.replace(old, Some(PageSum::of(pgno(at), &page)));
        self.pos = Pos { txid: pre.txid.next(), checksum };
        let header = Header {
            page_size: PageSize::new(PAGE).expect("a page size"),
            commit: pgno(at).get(),
            min: self.pos.txid,
            max: self.pos.txid,
            timestamp: now,
            pre: pre.checksum,
            wal: None,
            node: 0,
            form: Form::Tracked,
            codec: Codec::Lz4,
        };
        let mut encoder = Encoder::new(Vec::new(), header).expect("a header");
        encoder.page(pgno(at), &page).expect("a page");
        let ltx = encoder.finish(checksum).expect("a change set").writer;
        ChangeSet::new(db.clone(), ltx.into()).expect("a change set")
    }
}

/// Collects the pages of a list.
#[derive(Default)]
pub(super) struct Pages(Mutex<BTreeMap<u32, Vec<u8>>>);

impl PageSink for Pages {
    fn page(&self, pgno: Pgno, data: &[u8], _: PageSum) -> io::Result<()> {
        self.0.lock().insert(pgno.get(), data.to_vec());
        Ok(())
    }
}

impl Pages {
    /// The list that they are, at `pos`.
    pub fn list(self, pos: Pos) -> List {
        let pages = self.0.into_inner();
        let chunks = pages.values().flat_map(|page| page.chunks_exact(8));
        let numbers = chunks.map(|bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
        List { numbers: numbers.filter(|number| *number != 0).collect(), pos }
    }
}
