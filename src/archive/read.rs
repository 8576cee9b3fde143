//! Reading the steps of a plan: each LTX with its page index, its frames either in
//! memory or to be fetched. Must not decode pages.

use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::Archive;
use super::change::{self, Change, Entry, Place};
use super::error::ArchiveError;
use super::head::Head;
use super::manifest::ObjectRef;
use super::pack::{self, PackFault};
use super::plan::{self, Need, Packs, Part, Plan, Relation, Source, Step, Target};
use crate::ltx::{Codec, FrameDecoder, HEADER_LEN, Header, Index, Located, TAIL_LEN};
use crate::words::{DbName, PageSize, Pos};

/// LTX objects up to this size are read whole.
const WHOLE: u64 = 1 << 20;
/// What is read of a pack first: its list of change sets, mostly.
const PACK_HEAD: u64 = 64 << 10;

/// One LTX: where its pages are.
#[derive(Clone, Debug)]
pub(super) struct Ltx {
    /// The object that it is in.
    pub(super) key: Arc<str>,
    pub(super) change: Change,
    pub(super) header: Header,
    pub(super) index: Arc<Index>,
    pub(super) data: Data,
}

/// Its bytes.
#[derive(Clone, Debug)]
pub(super) enum Data {
    Memory(Bytes),
    /// It is the whole object.
    Remote {
        size: u64,
        sum: Option<u64>,
    },
}

/// Decoders of frames, kept: to set one up costs more than to decode some pages, and
/// there may be thousands of small change sets.
#[derive(Default)]
pub(super) struct Decoders(Vec<(PageSize, std::mem::Discriminant<Codec>, FrameDecoder)>);

impl Decoders {
    /// The decoder for frames of a file with this header.
    pub(super) fn of(&mut self, header: &Header) -> &mut FrameDecoder {
        let codec = std::mem::discriminant(&header.codec);
        let is_it = |kept: &(PageSize, _, _)| kept.0 == header.page_size && kept.1 == codec;
        let at = self.0.iter().position(is_it).unwrap_or(self.0.len());
        if at == self.0.len() {
            self.0.push((header.page_size, codec, FrameDecoder::new(header.clone())));
        }
        &mut self.0[at].2
    }
}

impl Archive {
    /// What gives `target` of database `db`.
    ///
    /// # Errors
    /// See `plan::plan`.
    pub fn plan(&self, head: &Head, db: &DbName, target: Target) -> Result<Plan, ArchiveError> {
        self.with_packs(|packs| plan::plan(head, db, target, packs))
    }

    /// What takes a reader of database `db` from `base` to the head; `base` must be
    /// on the chain (`relate`).
    ///
    /// # Errors
    /// See `plan::plan_since`.
    pub fn plan_since(&self, head: &Head, db: &DbName, base: Pos) -> Result<Plan, ArchiveError> {
        self.with_packs(|packs| plan::plan_since(head, db, base, packs))
    }

    /// How `pos` of database `db` relates to the chain.
    ///
    /// # Errors
    /// If a pack cannot be read.
    pub fn relate(&self, head: &Head, db: &DbName, pos: Pos) -> Result<Relation, ArchiveError> {
        self.with_packs(|packs| Ok(plan::relate(head, db, pos, packs)))
    }

    fn with_packs<T>(
        &self,
        mut ask: impl FnMut(&Packs) -> Result<Need<T>, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        let mut packs = Packs::new();
        loop {
            match ask(&packs)? {
                Need::Have(answer) => return Ok(answer),
                Need::Pack(object) => {
                    packs.insert(object.key.clone(), Arc::new(self.read_pack(&object)?));
                }
            }
        }
    }

    /// The list of change sets of a pack.
    pub(super) fn read_pack(&self, object: &ObjectRef) -> Result<Vec<Entry>, ArchiveError> {
        let mut len = PACK_HEAD.min(object.size);
        loop {
            let bytes = self.store.get_range(&object.key, 0, len)?;
            match pack::decode_head(&bytes) {
                Ok(entries) => return Ok(entries),
                Err(PackFault::Short(need)) if need > len && need <= object.size => len = need,
                Err(fault) => return Err(ArchiveError::damaged(&object.key, fault)),
            }
        }
    }

    /// The change sets of a step, oldest first.
    pub(super) fn load(&self, step: &Step) -> Result<Vec<Ltx>, ArchiveError> {
        match &step.source {
            Source::Object { sum } => Ok(vec![self.load_object(step, *sum)?]),
            Source::Parts(parts, bytes) => self.load_parts(&step.key, parts, bytes.as_ref()),
            Source::Pack => {
                let bytes = self.whole(&step.key, step.size)?;
                let entries =
                    pack::decode_head(&bytes).map_err(|fault| ArchiveError::damaged(&step.key, fault))?;
                let parts: Vec<Part> = entries.iter().filter_map(part).collect();
                self.load_parts(&step.key, &parts, Some(&bytes))
            }
        }
    }

    pub(super) fn load_parts(
        &self,
        key: &str,
        parts: &[Part],
        bytes: Option<&Bytes>,
    ) -> Result<Vec<Ltx>, ArchiveError> {
        let from = parts.iter().map(|part| part.offset).min().unwrap_or(0);
        let end = parts.iter().map(|part| part.offset.saturating_add(part.len)).max().unwrap_or(0);
        let (bytes, base) = match bytes {
            Some(bytes) => (bytes.clone(), 0),
            None => (self.store.get_range(key, from, end - from)?, from),
        };
        let name: Arc<str> = key.into();
        let mut out = Vec::with_capacity(parts.len());
        for part in parts {
            let range = || {
                let begin = usize::try_from(part.offset.checked_sub(base)?).ok()?;
                let end = begin.checked_add(usize::try_from(part.len).ok()?)?;
                (end <= bytes.len()).then(|| bytes.slice(begin..end))
            };
            let bytes = range().ok_or_else(|| ArchiveError::damaged(key, "it ends before its end"))?;
            out.push(in_memory(&name, part.change, bytes)?);
        }
        Ok(out)
    }

    fn load_object(&self, step: &Step, sum: Option<u64>) -> Result<Ltx, ArchiveError> {
        let key: Arc<str> = step.key.as_str().into();
        if step.size <= WHOLE {
            let bytes = self.whole(&key, step.size)?;
            if sum.is_some_and(|sum| checksum(CrcAlgorithm::Crc64Nvme, &bytes) != sum) {
                return Err(ArchiveError::damaged(&key, "its checksum is wrong"));
            }
            return in_memory(&key, step.change, bytes);
        }
        let end = |len: u64| {
            let from = step.size.saturating_sub(len);
            self.store.get_range(&key, from, step.size - from)
        };
        // Both at once: a start waits for it.
        let (header, mut bytes) = std::thread::scope(|scope| {
            let tail = scope.spawn(|| end(TAIL_LEN));
            let header = self.store.get_range(&key, 0, HEADER_LEN as u64);
            (header, tail.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let header = Header::parse(&header?).map_err(ArchiveError::ltx(&key))?;
        let mut read = TAIL_LEN;
        let (index, trailer) = loop {
            match Index::from_tail(&header, &bytes?, step.size).map_err(ArchiveError::ltx(&key))? {
                Located::Index(index, trailer) => break (index, trailer),
                Located::NeedTail(need) if need > read && need <= step.size => {
                    read = need;
                    bytes = end(need);
                }
                Located::NeedTail(_) => return Err(ArchiveError::damaged(&key, "it ends before its end")),
            }
        };
        check(&key, step.change, Change::of(&header, &index, &trailer))?;
        let data = Data::Remote { size: step.size, sum };
        Ok(Ltx { key, change: step.change, header, index: Arc::new(index), data })
    }

    /// A whole object that should have `size` bytes.
    pub(super) fn whole(&self, key: &str, size: u64) -> Result<Bytes, ArchiveError> {
        let bytes = self.store.get_range(key, 0, size)?;
        if bytes.len() as u64 != size {
            return Err(ArchiveError::damaged(key, format!("it has {} bytes, not {size}", bytes.len())));
        }
        Ok(bytes)
    }
}

pub(super) fn part(entry: &Entry) -> Option<Part> {
    match entry.place {
        Place::Here { offset, len } => Some(Part { change: entry.change, offset, len }),
        Place::Object { .. } => None,
    }
}

fn in_memory(key: &Arc<str>, change: Change, bytes: Bytes) -> Result<Ltx, ArchiveError> {
    let (header, index, trailer) = change::parse(&bytes).map_err(|why| ArchiveError::damaged(key, why))?;
    check(key, change, Change::of(&header, &index, &trailer))?;
    Ok(Ltx { key: key.clone(), change, header, index: Arc::new(index), data: Data::Memory(bytes) })
}

/// The LTX must do what the manifest or segment says that it does; its time may have
/// been put forward.
fn check(key: &str, expected: Change, found: Option<Change>) -> Result<(), ArchiveError> {
    match found {
        Some(found) if (Change { timestamp: expected.timestamp, ..found }) == expected => Ok(()),
        _ => Err(ArchiveError::damaged(key, format!("it holds {found:?}, not {expected:?}"))),
    }
}
