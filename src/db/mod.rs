//! One database: its files on the local disk, and the capture of its committed
//! transactions into the change log. Blocking; must not know FUSE, HTTP or the
//! archive.

mod apply;
mod change;
mod context;
mod copied;
mod database;
mod dirty;
mod dropping;
mod error;
mod fence;
mod files;
mod group;
mod halt;
mod image;
mod install;
mod kept;
mod log;
mod paths;
mod recover;
mod recover_journal;
mod recover_wal;
mod rollback;
mod saved;
mod shared;
mod sums;
mod waiting;
mod waiting_wal;
mod wal;

pub use apply::{Brake, Hidden, LiveApply, Paused};
pub use context::{LockTo, OwnFile, OwnMount, WAL_INDEX_HEADER, WalIndex};
pub use database::{Captured, Database, OpenHow};
pub use error::DbError;
pub use halt::Forward;
pub use image::Image;
pub use install::{Applying, Goal, Incoming, Parked};
pub use kept::KEPT_EMPTY;
pub use log::{
    Batch, ChangeLog, ChangeMeta, Kind, LogError, LogOptions, LogReader, Place, Scanned, ScannedChange,
    SpillWriter, StoredChange, WalEnd,
};
pub use paths::{FileKind, Paths};
pub use recover::{Since, Tail};
pub use saved::{replace_file, sync_dir};
pub use shared::{CommitListener, Committed, Done, Shared, Verdict};
