//! The bytes of a record. Must not touch files.
//!
//! Record: 32-byte head (magic, kind, body length, body CRC, head CRC), then the
//! body. A change's body: its facts, the page numbers, the page checksums, then the
//! pages themselves, unless they are in a file of their own (a spill). All integers
//! big-endian; CRC-64/GO-ISO.

use crc_fast::{CrcAlgorithm, checksum};

use crate::words::{Checksum, DbName, PageSize, PageSum, Pgno, Pos, Timestamp, Txid};

const MAGIC: u32 = 0x4c46_4c31;
/// Bytes of a record before its body.
pub(super) const HEAD: usize = 32;
/// The longest body that is believed: the facts of 2^32 pages of 12 bytes each and
/// the inline pages stay far below.
pub(super) const MAX_BODY: u64 = 1 << 36;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A committed transaction.
    Change,
    /// A transaction whose commit is still to come: void unless a `Commit` follows
    /// (or, after a loss of power, its journal is gone).
    Prepared,
    /// The commit of the database's last `Prepared`.
    Commit,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Kind::Change => 1,
            Kind::Prepared => 2,
            Kind::Commit => 3,
        }
    }

    fn from_code(code: u32) -> Option<Kind> {
        [Kind::Change, Kind::Prepared, Kind::Commit].into_iter().find(|kind| kind.code() == code)
    }
}

/// Where in the WAL a transaction ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalEnd {
    /// The WAL header's salts.
    pub salt: [u32; 2],
    /// The number of its last frame, counted from 1.
    pub frame: u32,
    /// The checksum stored in that frame.
    pub sum: [u32; 2],
}

/// The facts of a change set, without its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeMeta {
    /// The database.
    pub db: DbName,
    /// Its position before.
    pub pre: Pos,
    /// Its position after.
    pub post: Pos,
    /// The page size after.
    pub page_size: PageSize,
    /// The size in pages after; 0: the database was dropped.
    pub commit: u32,
    /// When it was captured.
    pub timestamp: Timestamp,
    /// Where it ended in the WAL, for a transaction of WAL mode.
    pub wal: Option<WalEnd>,
    /// The nonce of its rollback journal; 0 if there was none.
    pub journal: u32,
}

/// Records to be appended together, in one write.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) starts: Vec<usize>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Adds a change with its pages: `data` is their contents in `pages`' order.
    pub fn change(&mut self, kind: Kind, meta: &ChangeMeta, pages: &[(Pgno, PageSum)], data: &[&[u8]]) {
        let start = self.begin();
        self.facts(meta, pages, None);
        for page in data {
            self.bytes.extend_from_slice(page);
        }
        self.end(start, kind);
    }

    /// Adds a change whose pages are in spill file `spill`, with that file's CRC.
    pub fn spilled(&mut self, kind: Kind, meta: &ChangeMeta, pages: &[(Pgno, PageSum)], spill: (u64, u64)) {
        let start = self.begin();
        self.facts(meta, pages, Some(spill));
        self.end(start, kind);
    }

    /// Adds the commit of `db`'s last prepared change, if that leads to `post`; any
    /// other position makes it void.
    pub fn commit(&mut self, db: &DbName, post: Pos) {
        let start = self.begin();
        self.name(db);
        self.bytes.extend_from_slice(&post.txid.get().to_be_bytes());
        self.bytes.extend_from_slice(&post.checksum.get().to_be_bytes());
        self.end(start, Kind::Commit);
    }

    fn begin(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.resize(start + HEAD, 0);
        start
    }

    fn name(&mut self, db: &DbName) {
        let name = db.as_str().as_bytes();
        self.bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(name);
    }

    fn facts(&mut self, meta: &ChangeMeta, pages: &[(Pgno, PageSum)], spill: Option<(u64, u64)>) {
        self.name(&meta.db);
        let out = &mut self.bytes;
        for pos in [meta.pre, meta.post] {
            out.extend_from_slice(&pos.txid.get().to_be_bytes());
            out.extend_from_slice(&pos.checksum.get().to_be_bytes());
        }
        out.extend_from_slice(&meta.page_size.get().to_be_bytes());
        out.extend_from_slice(&meta.commit.to_be_bytes());
        out.extend_from_slice(&meta.timestamp.millis().to_be_bytes());
        let wal = meta.wal.unwrap_or_default();
        for word in [wal.salt[0], wal.salt[1], wal.frame, wal.sum[0], wal.sum[1], meta.journal] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        let (spill, crc) = spill.unwrap_or_default();
        out.extend_from_slice(&spill.to_be_bytes());
        out.extend_from_slice(&crc.to_be_bytes());
        out.extend_from_slice(&(pages.len() as u32).to_be_bytes());
        for (pgno, _) in pages {
            out.extend_from_slice(&pgno.get().to_be_bytes());
        }
        for (_, sum) in pages {
            out.extend_from_slice(&sum.get().to_be_bytes());
        }
    }

    fn end(&mut self, start: usize, kind: Kind) {
        let body = &self.bytes[start + HEAD..];
        let head = Head { kind, body: body.len() as u64, crc: checksum(CrcAlgorithm::Crc64GoIso, body) };
        self.bytes[start..start + HEAD].copy_from_slice(&head.encode());
        self.starts.push(start);
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: Kind,
    pub body: u64,
    pub crc: u64,
}

impl Head {
    fn encode(self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.kind.code().to_be_bytes());
        out[8..16].copy_from_slice(&self.body.to_be_bytes());
        out[16..24].copy_from_slice(&self.crc.to_be_bytes());
        let crc = checksum(CrcAlgorithm::Crc64GoIso, &out[..24]);
        out[24..32].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// The head in these bytes; `None` if they are none.
    pub fn decode(bytes: &[u8]) -> Option<Head> {
        let mut input = Input(bytes);
        let (magic, kind) = (input.u32()?, input.u32()?);
        let (body, crc, own) = (input.u64()?, input.u64()?, input.u64()?);
        let sound =
            magic == MAGIC && own == checksum(CrcAlgorithm::Crc64GoIso, bytes.get(..24)?) && body <= MAX_BODY;
        Some(Head { kind: Kind::from_code(kind)?, body, crc }).filter(|_| sound)
    }
}

/// A decoded body.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Change { meta: ChangeMeta, pages: Vec<(Pgno, PageSum)>, data: DataAt },
    Commit { db: DbName, post: Pos },
}

/// Where a change's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataAt {
    /// In the record, from this offset of the body on.
    Inline(u64),
    /// In this spill file, which has this CRC.
    Spill { id: u64, crc: u64 },
}

impl Body {
    /// Decodes a body; `bytes` may end where the inline pages begin. `None` if it is
    /// malformed.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Option<Body> {
        let mut input = Input(bytes);
        let db = input.name()?;
        if kind == Kind::Commit {
            return Some(Body::Commit { db, post: input.pos()? });
        }
        let (pre, post) = (input.pos()?, input.pos()?);
        let page_size = PageSize::new(input.u32()?).ok()?;
        let commit = input.u32()?;
        let timestamp = Timestamp::from_millis(input.u64()? as i64);
        let salt = [input.u32()?, input.u32()?];
        let wal = WalEnd { salt, frame: input.u32()?, sum: [input.u32()?, input.u32()?] };
        let journal = input.u32()?;
        let (spill, crc) = (input.u64()?, input.u64()?);
        let count = input.u32()? as usize;
        if input.0.len() < count.checked_mul(12)? {
            return None;
        }
        let (numbers, rest) = input.0.split_at(count * 4);
        let (sums, rest) = rest.split_at(count * 8);
        let pages = numbers
            .chunks_exact(4)
            .zip(sums.chunks_exact(8))
            .map(|(number, sum)| {
                let pgno = Pgno::new(u32::from_be_bytes(number.try_into().ok()?))?;
                Some((pgno, PageSum::from_stored(u64::from_be_bytes(sum.try_into().ok()?))?))
            })
            .collect::<Option<Vec<_>>>()?;
        let data = match spill {
            0 => DataAt::Inline((bytes.len() - rest.len()) as u64),
            id => DataAt::Spill { id, crc },
        };
        let wal = (wal.frame != 0).then_some(wal);
        let meta = ChangeMeta { db, pre, post, page_size, commit, timestamp, wal, journal };
        Some(Body::Change { meta, pages, data })
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn pos(&mut self) -> Option<Pos> {
        Some(Pos { txid: Txid::new(self.u64()?), checksum: Checksum::from_stored(self.u64()?)? })
    }

    fn name(&mut self) -> Option<DbName> {
        let len = self.u32()? as usize;
        DbName::new(std::str::from_utf8(self.take(len)?).ok()?).ok()
    }
}

/// How many bytes of a body come before its inline pages, at most, for `first`, a
/// body's beginning: enough to know the number of pages.
pub(super) fn facts_len(first: &[u8]) -> Option<u64> {
    let mut input = Input(first);
    let name = u64::from(input.u32()?);
    let fixed = 4 + name + 32 + 16 + 24 + 16;
    let count = first.get(usize::try_from(fixed).ok()?..)?.get(..4)?;
    Some(fixed + 4 + 12 * u64::from(u32::from_be_bytes(count.try_into().ok()?)))
}
