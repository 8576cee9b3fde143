//! Where in the log a replica has to begin. Files that are full do not change any more:
//! what is in them is remembered, not the change sets themselves.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::db::{LogError, Place};
use crate::store::Store;
use crate::words::{DbName, Pos, Txid};

/// Of each database in a file, the lowest position that a change set in it continues.
type Lowest = HashMap<DbName, Txid>;

/// What the full files of the log hold.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<BTreeMap<u64, Arc<Lowest>>>);

impl Places {
    /// The beginning of a file from which on the log has everything that these
    /// databases need, as far as it has it.
    pub fn begin(&self, store: &Store, mut missing: HashMap<DbName, Pos>) -> Result<Place, LogError> {
        let end = store.log().end();
        let files: Vec<u64> = store.log().files().iter().map(|(number, _)| *number).collect();
        let mut from = end.file;
        for number in files.iter().rev().filter(|number| **number <= end.file) {
            if missing.is_empty() {
                break;
            }
            let before = missing.len();
            let lowest = self.lowest(store, *number, end)?;
            missing.retain(|db, pos| lowest.get(db).is_none_or(|lowest| *lowest > pos.txid));
            if missing.len() < before {
                from = *number;
            }
        }
        // A change set can have been prepared in the file before.
        let earlier = files.iter().rev().find(|number| **number < from);
        Ok(Place { file: earlier.copied().unwrap_or(from), offset: 0 })
    }

    fn lowest(&self, store: &Store, number: u64, end: Place) -> Result<Arc<Lowest>, LogError> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Ok(Arc::clone(known));
        }
        let full = number < end.file;
        let upto = if full { Place { file: number + 1, offset: 0 } } else { end };
        let mut reader = store.log().reader(Place { file: number, offset: 0 });
        let mut lowest = Lowest::new();
        while let Some(change) = reader.next(upto)? {
            let pre = change.meta.pre.txid;
            let entry = lowest.entry(change.meta.db).or_insert(pre);
            *entry = pre.min(*entry);
        }
        let lowest = Arc::new(lowest);
        if full {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = store.log().files().first().map_or(0, |(number, _)| *number);
            known.retain(|number, _| *number >= oldest);
            known.insert(number, Arc::clone(&lowest));
        }
        Ok(lowest)
    }
}
