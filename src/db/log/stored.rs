//! A change set in the log, opened for reading its pages one by one. Must not read
//! a large change into memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{file_path, spill_path};
use super::record::{Body, ChangeMeta, DataAt, HEAD, Head};
use super::scan::read_facts;
use super::{LogError, Place};
use crate::words::{PageSum, Pgno};

/// A change set that the log holds.
#[derive(Debug)]
pub struct StoredChange {
    /// Its facts.
    pub meta: ChangeMeta,
    /// Its pages in ascending order, with the checksums of their new contents.
    pub pages: Vec<(Pgno, PageSum)>,
    file: File,
    path: PathBuf,
    data: u64,
}

pub(super) fn read_stored(dir: &Path, place: Place) -> Result<StoredChange, LogError> {
    let path = file_path(dir, place.file);
    let file = File::open(&path).map_err(LogError::io("open", &path))?;
    let damaged = |what| LogError::Damaged { path: path.clone(), offset: place.offset, what };
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, place.offset).map_err(LogError::io("read", &path))?;
    let head = Head::decode(&head).ok_or_else(|| damaged("no record begins here"))?;
    let body_at = place.offset + HEAD as u64;
    let facts = read_facts(&file, body_at, head.body).map_err(LogError::io("read", &path))?;
    match Body::decode(head.kind, &facts) {
        Some(Body::Change { meta, pages, data: DataAt::Inline(at) }) => {
            Ok(StoredChange { meta, pages, data: body_at + at, file, path })
        }
        Some(Body::Change { meta, pages, data: DataAt::Spill { id, .. } }) => {
            let path = spill_path(dir, id);
            let file = File::open(&path).map_err(LogError::io("open", &path))?;
            Ok(StoredChange { meta, pages, data: 0, file, path })
        }
        _ => Err(damaged("it is no change set")),
    }
}

impl StoredChange {
    /// Reads the content of the `index`-th page of `pages` and checks it.
    pub fn page(&self, index: usize, buf: &mut Vec<u8>) -> Result<(), LogError> {
        let size = self.meta.page_size.len();
        buf.resize(size, 0);
        let at = self.data + index as u64 * size as u64;
        self.file.read_exact_at(buf, at).map_err(LogError::io("read", &self.path))?;
        let sound = self.pages.get(index).is_some_and(|(pgno, sum)| PageSum::of(*pgno, buf) == *sum);
        if sound {
            Ok(())
        } else {
            Err(LogError::Damaged {
                path: self.path.clone(),
                offset: at,
                what: "a page does not have the checksum that was recorded",
            })
        }
    }

    /// Bytes of page content.
    pub fn data_len(&self) -> u64 {
        self.pages.len() as u64 * u64::from(self.meta.page_size.get())
    }
}
