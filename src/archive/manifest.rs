//! The manifest: what is compacted, up to which segment, and where each database
//! stood there. The one object of the archive that changes, by compare-and-swap
//! only. Must not know the segments after its horizon.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::change::Change;
use super::segment::WriterId;
use crate::words::{ClusterId, DbName, Epoch, PageSize, Pos, Seq, Timestamp};

const VERSION: u32 = 1;

/// The last segment of a part of the log: what the next one must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number; 0 before the first segment.
    pub seq: Seq,
    /// Its checksum.
    pub sum: u64,
    /// Its epoch; 0 before the first.
    pub epoch: Epoch,
    /// Its writer.
    pub writer: WriterId,
}

/// What kind of object holds transactions of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Change sets one by one.
    Pack,
    /// One change set that was too large for a segment.
    Change,
    /// Change sets merged into one, at this level (1 to 3).
    Merged(u8),
    /// The whole database.
    Snapshot,
}

/// One object that holds transactions of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its key.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// What it does, as a whole.
    #[serde(flatten)]
    pub change: Change,
    /// When its first transaction was committed.
    pub first: Timestamp,
    /// Its size in bytes.
    pub size: u64,
    /// CRC-64/NVME of its bytes, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<u64>,
}

impl ObjectRef {
    /// Whether it keeps every transaction that it holds restorable.
    pub fn is_exact(&self) -> bool {
        let one = self.change.min() == self.change.max();
        one || matches!(self.kind, Kind::Pack | Kind::Change)
    }

    /// Whether it alone is the whole database.
    pub fn is_full(&self) -> bool {
        self.kind != Kind::Pack && self.change.is_full()
    }
}

/// A database as of the horizon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Where it stood.
    pub pos: Pos,
    /// Its page size.
    pub page_size: PageSize,
    /// Its size in pages; 0: it is dropped.
    pub commit: u32,
    /// When its last transaction was committed.
    #[serde(rename = "time")]
    pub timestamp: Timestamp,
    /// What holds its history, by first and then by last transaction.
    pub objects: Vec<ObjectRef>,
}

/// An object that nobody needs any more, but that a running restore may still read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Doomed {
    /// Its key.
    pub key: String,
    /// Since when, by the clock of the node that wrote this.
    pub since: Timestamp,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The cluster whose archive this is.
    pub cluster: ClusterId,
    /// Different in every version of it: tells whose a write was whose reply was
    /// lost.
    pub nonce: u64,
    /// The last compacted segment. Segments up to it are void.
    pub horizon: Link,
    /// When it was written.
    pub updated: Timestamp,
    /// The databases.
    pub databases: BTreeMap<DbName, Database>,
    /// What is to be deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub doomed: BTreeSet<Doomed>,
}

/// What makes bytes no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFault {
    /// Written by a newer litefs.
    #[error("it has version {0}, which this litefs does not know; use a newer one")]
    Version(u64),
    /// Not the JSON that it should be.
    #[error("it is not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// What it says cannot be.
    #[error("what it says of database {0} contradicts itself")]
    Database(DbName),
}

impl Manifest {
    /// The manifest of an empty archive.
    pub fn new(cluster: ClusterId, nonce: u64, now: Timestamp) -> Manifest {
        let writer = WriterId { node: crate::words::NodeId::new(0), nonce: 0 };
        Manifest {
            version: VERSION,
            cluster,
            nonce,
            horizon: Link { seq: Seq::new(0), sum: 0, epoch: Epoch::new(0), writer },
            updated: now,
            databases: BTreeMap::new(),
            doomed: BTreeSet::new(),
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// None that a manifest of ours can have.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestFault> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// What makes it none.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestFault> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != u64::from(VERSION) {
            return Err(ManifestFault::Version(version));
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        for (name, database) in &manifest.databases {
            if !database.is_sound() {
                return Err(ManifestFault::Database(name.clone()));
            }
        }
        Ok(manifest)
    }
}

impl Database {
    fn is_sound(&self) -> bool {
        self.objects.iter().all(|object| {
            let change = &object.change;
            change.pre.txid < change.post.txid
                && change.pages <= change.commit
                && object.first <= change.timestamp
        })
    }

    /// Sorts its objects as they are kept.
    pub(super) fn sort(&mut self) {
        let key = |object: &ObjectRef| (object.change.pre.txid, object.change.post.txid, object.key.clone());
        self.objects.sort_by_cached_key(key);
    }
}
