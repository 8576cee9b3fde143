//! The archive: what is ours in object storage. One log of change sets for all
//! databases of a cluster, a manifest, and what upkeep makes of old segments. Must
//! not know mounts, local databases or leases.
//!
//! `Archive` reads (head, restore, history, verify), `Writer` is what the one node
//! that holds the lease writes with. Plans are pure (`plan`, `upkeep`), their
//! performers small.

mod acts;
mod bytes;
mod change;
mod error;
mod head;
mod history;
pub mod keys;
mod load;
mod manifest;
mod merge;
pub mod pack;
mod parked;
mod perform;
pub mod plan;
mod read;
mod restore;
pub mod segment;
mod sink;
mod spool;
mod sweep;
pub mod upkeep;
mod verify;
mod writer;

pub use change::{Body, Change, ChangeSet, Entry, Place};
pub use error::{ArchiveError, ChainFault, Fence, PutError};
pub use head::{Head, Standing, TailSegment};
pub use history::RestorePoint;
pub(crate) use load::in_parallel;
pub use manifest::{Database, Doomed, Kind, Link, Manifest, ManifestFault, ObjectRef};
pub use merge::Merged;
pub use pack::PackFault;
pub use parked::LostBranch;
pub use perform::{SnapshotSource, Snapshots, Upkept};
pub use plan::{Plan, Relation, Source, Step, Target};
pub use segment::{Segment, SegmentFault, SegmentHead, WriterId};
pub use sink::{FileSink, PageSink, Progress, Watch};
pub use spool::Spooled;
pub use upkeep::{Act, Occasion, plan_upkeep};
pub use verify::{Finding, Severity};
pub use writer::Writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ltx::Codec;
use crate::object::ObjectStore;
use crate::words::{Clock, ClusterId, Faults, SystemClock};

#[cfg(test)]
mod tests;

/// How the archive is kept.
#[derive(Clone)]
pub struct Options {
    /// How far back every moment stays restorable.
    pub retention: Duration,
    /// How long branches that lost are kept.
    pub parked_retention: Duration,
    /// After how much time with changes a database gets a new snapshot.
    pub snapshot_interval: Duration,
    /// How objects that upkeep makes are compressed. With `Lz4` Litestream restores
    /// them.
    pub codec: Codec,
    /// The log is compacted while running when it has more segments than this…
    pub max_tail_segments: u64,
    /// … or more bytes.
    pub max_tail_bytes: u64,
    /// So many files of one level are merged into one of the next.
    pub fan_in: usize,
    /// What nobody needs any more is deleted only after this time, for restores that
    /// still read it.
    pub grace: Duration,
    /// Where files are made that are too large for memory.
    pub spool: PathBuf,
    /// How many requests are made at once.
    pub parallel: usize,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Fail points.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Options {
        const HOUR: Duration = Duration::from_secs(3600);
        Options {
            retention: 30 * 24 * HOUR,
            parked_retention: 30 * 24 * HOUR,
            snapshot_interval: 24 * HOUR,
            codec: Codec::Zstd { level: 1 },
            max_tail_segments: 64,
            max_tail_bytes: 64 << 20,
            fan_in: 8,
            grace: HOUR,
            spool: std::env::temp_dir(),
            parallel: 16,
            clock: Arc::new(SystemClock),
            random: Arc::new(rand::random::<u64>),
            faults: Faults::none(),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("retention", &self.retention)
            .field("snapshot_interval", &self.snapshot_interval)
            .field("codec", &self.codec)
            .finish_non_exhaustive()
    }
}

/// The archive of one cluster.
#[derive(Clone)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    cluster: ClusterId,
    options: Options,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Archive({}, cluster {})", self.store.describe(), self.cluster)
    }
}

impl Archive {
    /// The same archive, with so many requests made at once.
    #[must_use]
    pub fn with_parallel(&self, parallel: usize) -> Archive {
        let options = Options { parallel, ..self.options.clone() };
        Archive { store: Arc::clone(&self.store), cluster: self.cluster, options }
    }

    /// The cluster whose archive this is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// How it is kept.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The store that it is in.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }
}
