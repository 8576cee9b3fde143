//! The one map from what went wrong to what the application sees.

use std::io;

use fuser::Errno;

use crate::db::{DbError, LogError};

/// What the application sees. SQLite turns EACCES at a journal into "attempt to write
/// a readonly database" (EROFS and EPERM into "unable to open"), ENOSPC into
/// "database or disk is full", and EIO at a write into "disk I/O error".
pub(super) fn of(error: &DbError) -> Errno {
    match error {
        DbError::Io { source, .. } | DbError::Log(LogError::Io { source, .. }) => of_io(source),
        DbError::ReadOnly { .. } => Errno::EACCES,
        DbError::Log(LogError::Damaged { .. })
        | DbError::Unjournaled { .. }
        | DbError::Damaged { .. }
        | DbError::NotArchived { .. }
        | DbError::NotTaken { .. } => Errno::EIO,
        DbError::Full { .. } => Errno::ENOSPC,
        DbError::Busy { .. } => Errno::EBUSY,
        DbError::Missing { .. } => Errno::ENOENT,
        DbError::BadPath { .. } => Errno::EINVAL,
    }
}

/// The errno of a failed system call.
pub(super) fn of_io(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Maps, and tells the log what the application cannot be told.
pub(super) fn report(error: DbError) -> Errno {
    let errno = of(&error);
    match &error {
        DbError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {}
        DbError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {}
        DbError::Io { .. } | DbError::Log(_) | DbError::Damaged { .. } => tracing::error!("{error}"),
        DbError::Unjournaled { .. }
        | DbError::Busy { .. }
        | DbError::NotArchived { .. }
        | DbError::NotTaken { .. } => {
            tracing::warn!("{error}");
        }
        DbError::Full { .. }
        | DbError::ReadOnly { .. }
        | DbError::Missing { .. }
        | DbError::BadPath { .. } => {
            tracing::debug!("{error}");
        }
    }
    errno
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::DbName;

    #[test]
    fn a_full_disk_and_a_replica_are_told_apart_by_sqlite() {
        let full = DbError::io("write", "/x")(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(of(&full).code(), libc::ENOSPC);
        let db = DbName::new("a").expect("a name");
        assert_eq!(of(&DbError::ReadOnly { db: db.clone() }).code(), libc::EACCES);
        assert_eq!(of(&DbError::Unjournaled { db }).code(), libc::EIO);
    }
}
