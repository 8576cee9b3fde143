//! The history of a database: the points that it can be restored to. Must not
//! restore.

use super::Archive;
use super::error::ArchiveError;
use super::head::Head;
use super::load::in_parallel;
use super::manifest::{Kind, ObjectRef};
use crate::words::{DbName, PageSize, Pos, Timestamp};

/// A point that a database can be restored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// The position there.
    pub pos: Pos,
    /// When it was committed.
    pub timestamp: Timestamp,
    /// The page size there.
    pub page_size: PageSize,
    /// The size of the database there, in pages; 0: it was dropped there.
    pub commit: u32,
    /// How many bytes its change set has in the archive.
    pub size: u64,
    /// Whether a snapshot stands there.
    pub snapshot: bool,
}

impl Archive {
    /// The restore points of `db` from `from` to `to`, oldest first. Reads the lists
    /// of the packs of that time.
    ///
    /// # Errors
    /// `NoDatabase`, or if a pack cannot be read.
    pub fn history(
        &self,
        head: &Head,
        db: &DbName,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<RestorePoint>, ArchiveError> {
        if head.standing(db).is_none() {
            return Err(ArchiveError::NoDatabase { db: db.clone() });
        }
        let objects: Vec<&ObjectRef> = head
            .objects(db)
            .iter()
            .filter(|object| object.first <= to && object.change.timestamp >= from)
            .collect();
        let packs: Vec<&ObjectRef> = objects.iter().copied().filter(|o| o.kind == Kind::Pack).collect();
        let point = |change: &super::Change, size, snapshot| RestorePoint {
            pos: change.post,
            timestamp: change.timestamp,
            page_size: change.page_size,
            commit: change.commit,
            size,
            snapshot,
        };
        let mut points = Vec::new();
        for entries in in_parallel(self.options.parallel, &packs, |pack| self.read_pack(pack)) {
            points.extend(entries?.iter().map(|entry| point(&entry.change, entry.size(), false)));
        }
        points.extend(head.tail_of(db).map(|(_, entry)| point(&entry.change, entry.size(), false)));
        for object in objects.iter().filter(|object| object.kind != Kind::Pack) {
            points.push(point(&object.change, object.size, object.kind == Kind::Snapshot));
        }
        points.retain(|point| from <= point.timestamp && point.timestamp <= to);
        // Of several objects that end at one position the smallest is its change set.
        points.sort_by_key(|point| (point.pos.txid, point.size));
        let mut unique: Vec<RestorePoint> = Vec::with_capacity(points.len());
        for point in points {
            match unique.last_mut().filter(|last| last.pos == point.pos) {
                Some(last) => last.snapshot |= point.snapshot,
                None => unique.push(point),
            }
        }
        Ok(unique)
    }
}
