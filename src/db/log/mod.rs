//! The change log: one append-only sequence of files per node that holds every
//! captured transaction of every database until the archive has it and its
//! retention is over. Group fsync, one writer, any number of readers. Must not know
//! how transactions are captured or published.
//!
//! Format: docs/FORMATS.md §Local change log.

mod files;
mod reader;
mod record;
mod scan;
mod stored;
mod sync;

pub use files::{ChangeLog, LogOptions, SpillWriter};
pub use reader::LogReader;
pub use record::{Batch, ChangeMeta, Kind, WalEnd};
pub use scan::{Scanned, ScannedChange};
pub use stored::StoredChange;

use std::io;
use std::path::PathBuf;

/// Where a record is: a file of the log and the record's offset in it. Records are
/// ordered as they were appended.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Place {
    /// The number of the file.
    pub file: u64,
    /// The offset in bytes.
    pub offset: u64,
}

/// A failure of the change log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A system call failed.
    #[error("{attempt} the change log {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A record that cannot be what was written, before the log's end.
    #[error(
        "the change log {path} is damaged at offset {offset}: {what}; move the data directory aside and \
         start again: the node then restores from the archive",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
}

impl LogError {
    /// Whether the file is not there any more.
    pub fn is_missing(&self) -> bool {
        matches!(self, LogError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LogError {
        let path = path.into();
        move |source| LogError::Io { attempt, path, source }
    }
}
