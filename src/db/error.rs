//! What can go wrong with a database. The mount maps it to an errno; the text goes
//! to the log.

use std::io;
use std::path::PathBuf;

use crate::words::DbName;

/// A failed operation on a database.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A system call failed.
    #[error("{attempt} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted: `"write"`, `"open"`, …
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The change log failed.
    #[error(transparent)]
    Log(#[from] super::LogError),
    /// This node is not the primary.
    #[error("database {db} is read-only here: this node is not the primary")]
    ReadOnly {
        /// The database.
        db: DbName,
    },
    /// A change that no journal and no WAL covers, which therefore has no commit.
    #[error(
        "refused an unjournaled change to database {db}: journal_mode MEMORY and OFF have no commit \
         point (use DELETE, TRUNCATE, PERSIST or WAL; to replace a database, use litefs import)"
    )]
    Unjournaled {
        /// The database.
        db: DbName,
    },
    /// So much waits for the archive that nothing may be added.
    #[error(
        "refused a write to database {db}: the backlog of what the archive does not have is full (storage.backlog; its \
         application sees that the disk is full)"
    )]
    Full {
        /// The database.
        db: DbName,
    },
    /// A commit that was to count only once the archive has it.
    #[error(
        "a commit to database {db} was not acknowledged: this node stops, or is not the primary any more, before the \
         archive has it (its application sees a disk I/O error)"
    )]
    NotArchived {
        /// The database.
        db: DbName,
    },
    /// A commit under the halt lock that the primary did not take.
    #[error(
        "a commit to database {db} was not acknowledged: the primary did not say that it took it, and the halt lock is \
         lost (its application sees a disk I/O error)"
    )]
    NotTaken {
        /// The database.
        db: DbName,
    },
    /// The files contradict each other.
    #[error("database {db} is damaged: {what}")]
    Damaged {
        /// The database.
        db: DbName,
        /// What does not fit, and what to do.
        what: String,
    },
    /// The database is in use in a way that excludes the operation.
    #[error("database {db} is busy: {what}")]
    Busy {
        /// The database.
        db: DbName,
        /// By what.
        what: String,
    },
    /// No such database.
    #[error("there is no database {db}")]
    Missing {
        /// The database.
        db: DbName,
    },
    /// A name that cannot be used.
    #[error("{path:?} cannot be used: {why}")]
    BadPath {
        /// The path below the mount.
        path: String,
        /// Why not.
        why: &'static str,
    },
}

impl DbError {
    /// A failed system call.
    pub fn io(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DbError {
        let path = path.into();
        move |source| DbError::Io { attempt, path, source }
    }
}
