//! Reading the whole log at start: which transactions it holds, where it ends, what
//! was prepared and never committed. Must not change files, but for spills that no
//! record names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc_fast::{CrcAlgorithm, Digest};

use super::files::{file_path, spill_path};
use super::record::{Body, ChangeMeta, DataAt, HEAD, Head, Kind, facts_len};
use super::{LogError, Place};
use crate::words::{DbName, PageSum, Pgno};

/// A change set that the log holds.
#[derive(Clone, Debug)]
pub struct ScannedChange {
    /// Where.
    pub place: Place,
    /// Its facts.
    pub meta: ChangeMeta,
    /// Its pages.
    pub pages: Vec<(Pgno, PageSum)>,
}

/// What a log holds.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Committed change sets in the order of their commits.
    pub committed: Vec<ScannedChange>,
    /// For each database, a change set prepared after its last commit.
    pub prepared: HashMap<DbName, ScannedChange>,
    pub(super) files: BTreeMap<u64, u64>,
    pub(super) end: u64,
    pub(super) next_spill: u64,
}

impl Scanned {
    pub(super) fn read(dir: &Path, verify_from: u64) -> Result<Scanned, LogError> {
        let (numbers, spills) = list(dir)?;
        let mut scanned =
            Scanned { next_spill: spills.iter().max().map_or(1, |id| id + 1), ..Scanned::default() };
        let mut named = HashSet::new();
        let last = numbers.last().copied();
        for number in numbers {
            let path = file_path(dir, number);
            let len = read_file(&path, number, number >= verify_from, |entry| {
                scanned.take(entry, &mut named);
            })?;
            let size = fs::metadata(&path).map_err(LogError::io("read", &path))?.len();
            if len < size && Some(number) != last {
                return Err(LogError::Damaged {
                    path,
                    offset: len,
                    what: "a record in the middle is not whole",
                });
            }
            scanned.files.insert(number, len);
            scanned.end = len;
        }
        for spill in spills.iter().filter(|spill| !named.contains(*spill)) {
            let path = spill_path(dir, *spill);
            fs::remove_file(&path).map_err(LogError::io("remove an unused file of", &path))?;
        }
        Ok(scanned)
    }

    fn take(&mut self, entry: Entry, named: &mut HashSet<u64>) {
        match entry.body {
            Body::Change { meta, pages, data } => {
                if let DataAt::Spill { id, .. } = data {
                    named.insert(id);
                }
                let change = ScannedChange { place: entry.place, meta, pages };
                if entry.kind == Kind::Prepared {
                    self.prepared.insert(change.meta.db.clone(), change);
                } else {
                    self.prepared.remove(&change.meta.db);
                    self.committed.push(change);
                }
            }
            Body::Commit { db, post } => {
                if let Some(change) = self.prepared.remove(&db).filter(|change| change.meta.post == post) {
                    self.committed.push(change);
                }
            }
        }
    }
}

fn list(dir: &Path) -> Result<(Vec<u64>, Vec<u64>), LogError> {
    let (mut files, mut spills) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(LogError::io("list", dir))? {
        let name = entry.map_err(LogError::io("list", dir))?.file_name();
        let Some((stem, ending)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        let Ok(number) = u64::from_str_radix(stem, 16) else { continue };
        match ending {
            "log" => files.push(number),
            "spill" => spills.push(number),
            _ => {}
        }
    }
    files.sort_unstable();
    Ok((files, spills))
}

struct Entry {
    place: Place,
    kind: Kind,
    body: Body,
}

/// Reads the records of one file; returns where the sound ones end.
fn read_file(path: &Path, number: u64, verify: bool, mut each: impl FnMut(Entry)) -> Result<u64, LogError> {
    let file = File::open(path).map_err(LogError::io("open", path))?;
    let size = file.metadata().map_err(LogError::io("read", path))?.len();
    let mut offset = 0;
    while offset + HEAD as u64 <= size {
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, offset).map_err(LogError::io("read", path))?;
        let Some(head) = Head::decode(&head) else { break };
        let body_at = offset + HEAD as u64;
        let Some(end) = body_at.checked_add(head.body).filter(|end| *end <= size) else { break };
        let body = read_facts(&file, body_at, head.body).map_err(LogError::io("read", path))?;
        let Some(body) = Body::decode(head.kind, &body) else { break };
        if verify && body_crc(&file, body_at, head.body).map_err(LogError::io("read", path))? != head.crc {
            break;
        }
        each(Entry { place: Place { file: number, offset }, kind: head.kind, body });
        offset = end;
    }
    Ok(offset)
}

/// The body without its inline pages.
pub(super) fn read_facts(file: &File, at: u64, len: u64) -> std::io::Result<Vec<u8>> {
    let mut first = vec![0; len.min(1536) as usize];
    file.read_exact_at(&mut first, at)?;
    let wanted = facts_len(&first).unwrap_or(len).min(len) as usize;
    let have = first.len().min(wanted);
    first.resize(wanted, 0);
    if wanted > have {
        file.read_exact_at(&mut first[have..], at + have as u64)?;
    }
    Ok(first)
}

fn body_crc(file: &File, at: u64, len: u64) -> std::io::Result<u64> {
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    let mut buffer = vec![0; len.min(1 << 20) as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..part], at + done)?;
        digest.update(&buffer[..part]);
        done += part as u64;
    }
    Ok(digest.finalize())
}

/// The spills that the records of a file name.
pub(super) fn spills_of(path: &Path, number: u64) -> Result<Vec<u64>, LogError> {
    let mut spills = Vec::new();
    read_file(path, number, false, |entry| {
        if let Body::Change { data: DataAt::Spill { id, .. }, .. } = entry.body {
            spills.push(id);
        }
    })?;
    Ok(spills)
}
