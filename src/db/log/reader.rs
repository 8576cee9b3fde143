//! Following the log from some place of it to where it ends now, and later on from
//! there. Must not keep up whoever appends.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::file_path;
use super::record::{Body, HEAD, Head, Kind};
use super::scan::{ScannedChange, read_facts};
use super::{LogError, Place};
use crate::words::DbName;

/// Reads committed change sets in their order, without their pages.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    place: Place,
    file: Option<File>,
    /// Change sets whose commit is still to come.
    prepared: HashMap<DbName, ScannedChange>,
}

impl LogReader {
    pub(super) fn new(dir: &Path, from: Place) -> LogReader {
        LogReader { dir: dir.to_owned(), place: from, file: None, prepared: HashMap::new() }
    }

    /// Where the next record is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The next committed change set whose commit is before `end`, an end that the log
    /// had; `None` if there is no other. One whose preparation lies before the reader's
    /// beginning is left out.
    ///
    /// # Errors
    /// `is_missing` ones: the file was removed, its retention is over.
    pub fn next(&mut self, end: Place) -> Result<Option<ScannedChange>, LogError> {
        while self.place < end {
            let path = file_path(&self.dir, self.place.file);
            let io = |attempt| LogError::io(attempt, &path);
            let file = match self.file.take() {
                Some(file) => file,
                None => File::open(&path).map_err(io("open"))?,
            };
            let limit = match self.place.file == end.file {
                true => end.offset,
                false => file.metadata().map_err(io("read"))?.len(),
            };
            if self.place.offset >= limit {
                self.place = Place { file: self.place.file + 1, offset: 0 };
                continue;
            }
            let found = self.record(&file, &path, limit)?;
            self.file = Some(file);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Reads the record here; a change set if one is committed with it.
    fn record(&mut self, file: &File, path: &Path, limit: u64) -> Result<Option<ScannedChange>, LogError> {
        let place = self.place;
        let damaged = |what| LogError::Damaged { path: path.to_owned(), offset: place.offset, what };
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, place.offset).map_err(LogError::io("read", path))?;
        let head = Head::decode(&head).ok_or_else(|| damaged("no record begins here"))?;
        let body_at = place.offset + HEAD as u64;
        let next = body_at.checked_add(head.body).filter(|next| *next <= limit);
        let next = next.ok_or_else(|| damaged("a record is longer than the file"))?;
        let facts = read_facts(file, body_at, head.body).map_err(LogError::io("read", path))?;
        let body = Body::decode(head.kind, &facts).ok_or_else(|| damaged("a record says nothing"))?;
        self.place.offset = next;
        Ok(match body {
            Body::Change { meta, pages, .. } => {
                let change = ScannedChange { place, meta, pages };
                if head.kind == Kind::Prepared {
                    self.prepared.insert(change.meta.db.clone(), change);
                    None
                } else {
                    self.prepared.remove(&change.meta.db);
                    Some(change)
                }
            }
            Body::Commit { db, post } => self.prepared.remove(&db).filter(|change| change.meta.post == post),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, ChangeLog, ChangeMeta, LogOptions};
    use super::*;
    use crate::words::{Checksum, PageSize, PageSum, Pgno, Pos, Timestamp, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { txid: Txid::new(txid), checksum: Checksum::from_stored(1 << 63 | txid).expect("bit 63 is set") }
    }

    fn name(db: &str) -> DbName {
        DbName::new(db).expect("a name")
    }

    fn append(log: &ChangeLog, kind: Kind, db: &str, txid: u64) {
        let meta = ChangeMeta {
            db: name(db),
            pre: pos(txid - 1),
            post: pos(txid),
            page_size: PageSize::new(512).expect("a page size"),
            commit: 1,
            timestamp: Timestamp::from_millis(0),
            wal: None,
            journal: 0,
        };
        let page = [7; 512];
        let mut batch = Batch::new();
        batch.change(kind, &meta, &[(Pgno::FIRST, PageSum::of(Pgno::FIRST, &page))], &[&page]);
        log.append(&batch).expect("append");
    }

    fn commit(log: &ChangeLog, db: &str, txid: u64) {
        let mut batch = Batch::new();
        batch.commit(&name(db), pos(txid));
        log.append(&batch).expect("append");
    }

    fn read(reader: &mut LogReader, end: Place) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        while let Some(change) = reader.next(end).expect("sound") {
            found.push((change.meta.db.to_string(), change.meta.post.txid.get()));
        }
        found
    }

    #[test]
    fn a_reader_follows_the_log_over_files_and_sees_what_is_committed() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = LogOptions { rotate_at: 1500, ..LogOptions::default() };
        let (log, _) = ChangeLog::open(dir.path(), options, 0).expect("open");
        let mut reader = log.reader(Place { file: 1, offset: 0 });
        assert_eq!(read(&mut reader, log.end()), []);
        append(&log, Kind::Change, "a", 1);
        append(&log, Kind::Prepared, "b", 1);
        let early = log.end();
        append(&log, Kind::Change, "a", 2);
        assert_eq!(read(&mut reader, early), [("a".to_owned(), 1)]);
        assert_eq!(read(&mut reader, early), []);
        assert_eq!(read(&mut reader, log.end()), [("a".to_owned(), 2)]);
        commit(&log, "b", 1);
        append(&log, Kind::Prepared, "b", 2);
        commit(&log, "b", 1);
        (3..20).for_each(|txid| append(&log, Kind::Change, "a", txid));
        assert!(log.end().file > 2, "it was rotated");
        let rest = read(&mut reader, log.end());
        assert_eq!(rest[0], ("b".to_owned(), 1), "a prepared one is committed; the next was taken back");
        assert_eq!(rest[1..], (3..20).map(|txid| ("a".to_owned(), txid)).collect::<Vec<_>>());
        assert_eq!(reader.place(), log.end());
        log.remove_before(3).expect("remove");
        let mut late = log.reader(Place { file: 2, offset: 0 });
        assert!(late.next(log.end()).expect_err("it is gone").is_missing());
    }
}
