//! Checking the archive: is everything there, does it fit together, and (deep) does
//! every byte decode to what is stated? Must not repair.

use std::collections::BTreeMap;
use std::io::{self, BufReader};

use super::Archive;
use super::change::{Change, Place};
use super::error::ArchiveError;
use super::head::Head;
use super::load::in_parallel;
use super::manifest::{Database, Kind, ObjectRef};
use super::plan::Target;
use super::sink::PageSink;
use super::sweep::named;
use super::upkeep::exact;
use super::{keys, pack, segment};
use crate::ltx::{Decoder, Form};
use crate::words::{DbName, PageSum, Pgno, Pos};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is lost or wrong.
    Damage,
    /// An object that nobody needs; `litefs gc` removes what it knows of.
    Leftover,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object's key, or the database's name.
    pub what: String,
    /// What is wrong.
    pub why: String,
}

impl Finding {
    fn damage(what: impl ToString, why: impl ToString) -> Finding {
        Finding { severity: Severity::Damage, what: what.to_string(), why: why.to_string() }
    }
}

impl Archive {
    /// Checks that every object is there, of the right size, and that the objects of
    /// each database (or of `only`) cover its history without a gap; with `deep`
    /// also reads all of it, decodes it and compares every checksum.
    ///
    /// # Errors
    /// If the store cannot be read. What is wrong with the archive is in the list.
    pub fn verify(&self, only: Option<&DbName>, deep: bool) -> Result<Vec<Finding>, ArchiveError> {
        let head = match self.head() {
            Ok(head) => head,
            Err(error @ (ArchiveError::Chain(_) | ArchiveError::Damaged { .. })) => {
                return Ok(vec![Finding::damage("log", error)]);
            }
            Err(error) => return Err(error),
        };
        let mut findings = Vec::new();
        let mut listed = self.store.list(keys::DATABASES, None)?;
        listed.extend(self.store.list(keys::BIG, None)?);
        let sizes: BTreeMap<&str, u64> = listed.iter().map(|info| (info.key.as_str(), info.size)).collect();
        let chosen = |db: &DbName| only.is_none_or(|only| only == db);
        for (db, database) in head.manifest().databases.iter().filter(|(db, _)| chosen(db)) {
            findings.extend(missing(database, &sizes));
            findings.extend(gaps(db, database));
        }
        if only.is_none() {
            findings.extend(self.leftovers(&head, &sizes)?);
        }
        if deep {
            self.verify_deep(&head, &chosen, &mut findings)?;
        }
        findings.sort_by(|a, b| (a.severity, &a.what).cmp(&(b.severity, &b.what)));
        Ok(findings)
    }

    /// Objects that neither the manifest nor the log names.
    fn leftovers(&self, head: &Head, sizes: &BTreeMap<&str, u64>) -> Result<Vec<Finding>, ArchiveError> {
        let known = named(head);
        let leftover = |key: &str, why: &str| Finding {
            severity: Severity::Leftover,
            what: key.to_owned(),
            why: why.to_owned(),
        };
        let unnamed = sizes.keys().filter(|key| !known.contains::<str>(key));
        let mut findings: Vec<Finding> =
            unnamed.map(|key| leftover(key, "neither the manifest nor the log names it")).collect();
        for info in self.store.list(keys::LOG, None)? {
            if keys::parse_segment(&info.key).is_none() {
                findings.push(leftover(&info.key, "this is no name of a segment"));
            }
        }
        Ok(findings)
    }

    fn verify_deep(
        &self,
        head: &Head,
        chosen: &dyn Fn(&DbName) -> bool,
        findings: &mut Vec<Finding>,
    ) -> Result<(), ArchiveError> {
        let databases = head.manifest().databases.iter().filter(|(db, _)| chosen(db));
        let objects: Vec<&ObjectRef> = databases.flat_map(|(_, database)| &database.objects).collect();
        for (object, checked) in
            objects.iter().zip(in_parallel(self.options.parallel / 2, &objects, |o| self.verify_object(o)))
        {
            collect(&object.key, checked, findings)?;
        }
        for tail in head.tail() {
            let key = keys::segment(tail.segment.head.seq);
            collect(&key, self.verify_segment(&key, chosen), findings)?;
        }
        for (db, _) in head.databases().iter().filter(|(db, stands)| chosen(db) && !stands.is_dropped()) {
            let restored =
                self.plan(head, db, Target::Latest).and_then(|plan| self.restore(&plan, &Nowhere, &()));
            collect(db.as_str(), restored, findings)?;
        }
        Ok(())
    }

    fn verify_segment(&self, key: &str, chosen: &dyn Fn(&DbName) -> bool) -> Result<(), ArchiveError> {
        let Some(object) = self.store.get(key)? else {
            return Err(ArchiveError::damaged(key, "it is gone"));
        };
        let segment = segment::decode(&object.body).map_err(|fault| ArchiveError::damaged(key, fault))?;
        for entry in segment.entries.iter().filter(|entry| chosen(&entry.db)) {
            match &entry.place {
                Place::Here { offset, len } => {
                    let bytes = super::restore::frame(&object.body, *offset, *len);
                    verify_ltx(key, &entry.change, bytes.unwrap_or_default())?;
                }
                Place::Object { key, size } => {
                    verify_ltx(key, &entry.change, BufReader::new(self.reader(key, *size)))?;
                }
            }
        }
        Ok(())
    }

    /// Reads an object to its end and checks everything that it states.
    pub(super) fn verify_object(&self, object: &ObjectRef) -> Result<(), ArchiveError> {
        let key = &object.key;
        if object.sum.is_some() && object.sum != Some(self.sum_of(key, object.size)?) {
            return Err(ArchiveError::damaged(key, "its checksum is wrong"));
        }
        if object.kind != Kind::Pack {
            let reader = BufReader::with_capacity(128 << 10, self.reader(key, object.size));
            return verify_ltx(key, &object.change, reader);
        }
        let bytes = self.whole(key, object.size)?;
        let entries = pack::decode_head(&bytes).map_err(|fault| ArchiveError::damaged(key, fault))?;
        let mut at = object.change.pre;
        for entry in &entries {
            let Place::Here { offset, len } = entry.place else { continue };
            if entry.change.pre != at {
                return Err(ArchiveError::damaged(key, format!("its change sets have a gap at {at}")));
            }
            at = entry.change.post;
            verify_ltx(key, &entry.change, super::restore::frame(&bytes, offset, len).unwrap_or_default())?;
        }
        if at == object.change.post {
            return Ok(());
        }
        Err(ArchiveError::damaged(key, format!("it ends at {at}, not {}", object.change.post)))
    }
}

/// A wrong object is a finding; a store that cannot be read ends the check.
fn collect(
    what: &str,
    checked: Result<(), ArchiveError>,
    findings: &mut Vec<Finding>,
) -> Result<(), ArchiveError> {
    match checked {
        Err(error) if error.is_transient() => Err(error),
        Err(error) => {
            findings.push(Finding::damage(what, error));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Decodes a whole LTX and compares it with what is stated of it.
fn verify_ltx(key: &str, stated: &Change, reader: impl io::Read) -> Result<(), ArchiveError> {
    let mut decoder = Decoder::new(reader).map_err(ArchiveError::ltx(key))?;
    let header = decoder.header().clone();
    let mut page = Vec::new();
    let mut pages = 0;
    while decoder.next_page(&mut page).map_err(ArchiveError::ltx(key))?.is_some() {
        pages += 1;
    }
    let trailer = decoder.finish().map_err(ArchiveError::ltx(key))?;
    let found = Change {
        pre: Pos { txid: stated.pre.txid, checksum: header.pre },
        post: trailer.post.map_or(Pos::ZERO, |checksum| Pos { txid: header.max, checksum }),
        page_size: header.page_size,
        commit: header.commit,
        pages,
        timestamp: stated.timestamp,
    };
    if found == *stated && header.min == stated.min() && header.form != Form::Untracked {
        return Ok(());
    }
    Err(ArchiveError::damaged(key, format!("it holds {found:?}, not {stated:?}")))
}

/// Objects that are not there or not as large as stated.
fn missing(database: &Database, sizes: &BTreeMap<&str, u64>) -> Vec<Finding> {
    let check = |object: &ObjectRef| match sizes.get(object.key.as_str()) {
        None => Some(Finding::damage(&object.key, "it is missing")),
        Some(size) if *size != object.size => {
            Some(Finding::damage(&object.key, format!("it has {size} bytes, not {}", object.size)))
        }
        Some(_) => None,
    };
    database.objects.iter().filter_map(check).collect()
}

/// Whether the objects cover the history up to where the database stands.
fn gaps(db: &DbName, database: &Database) -> Vec<Finding> {
    if database.objects.is_empty() && database.commit == 0 {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let exact = exact(database);
    for pair in exact.windows(2) {
        let [before, after] = pair else { continue };
        if before.change.post.txid < after.change.pre.txid {
            findings
                .push(Finding::damage(db, format!("nothing holds its TXIDs after {}", before.change.post)));
        } else if before.change.post != after.change.pre {
            let (before, after) = (before.change.post, after.change.pre);
            findings.push(Finding::damage(db, format!("{before} is followed by what begins at {after}")));
        }
    }
    let full_at_end = database.objects.iter().any(|o| o.is_full() && o.change.post == database.pos);
    if !exact.last().map_or(full_at_end, |last| last.change.post == database.pos) {
        let why = format!("its single transactions do not reach where it stands, {}", database.pos);
        findings.push(Finding::damage(db, why));
    }
    let begin = exact.first().map(|object| object.change.pre);
    let based = begin.is_some_and(|begin| {
        begin == Pos::ZERO || database.objects.iter().any(|o| o.is_full() && o.change.max() >= begin.txid)
    });
    if !based {
        findings.push(Finding::damage(db, "it has no snapshot that its history begins with"));
    }
    findings
}

/// Pages that only had to decode.
struct Nowhere;

impl PageSink for Nowhere {
    fn page(&self, _: Pgno, _: &[u8], _: PageSum) -> io::Result<()> {
        Ok(())
    }
}
