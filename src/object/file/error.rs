//! What an I/O error of the archive's directory means to the caller, and what a
//! person can do about it. One exhaustive place; must not decide anything else.

use std::io;

use rustix::io::Errno;

use crate::object::{ObjectError, ObjectErrorKind};

/// The kind of an I/O error, and its text with a remedy. A directory that cannot be
/// used for now (full, read-only, unmounted, no rights) is `Unreachable`: a node
/// waits for it as it would for a network.
pub(super) fn classify(attempt: String, error: &io::Error) -> ObjectError {
    let (kind, remedy) = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => (
            ObjectErrorKind::Unreachable,
            "; free some space on its disk: writing goes on as soon as there is some",
        ),
        Some(Errno::ROFS) => {
            (ObjectErrorKind::Unreachable, "; remount its disk writable: writing goes on as soon as it is")
        }
        Some(Errno::ACCESS | Errno::PERM) => (
            ObjectErrorKind::Unreachable,
            "; give the user that litefs runs as the right to read and write it",
        ),
        Some(Errno::NAMETOOLONG) => {
            (ObjectErrorKind::Unsupported, "; its file system does not allow names this long")
        }
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => (
            ObjectErrorKind::Unsupported,
            "; a file and a directory cannot share a name, nor an object and others below it",
        ),
        Some(Errno::LOOP) => (ObjectErrorKind::Unsupported, "; its path leads in a circle"),
        _ => (ObjectErrorKind::Unreachable, ""),
    };
    ObjectError { kind, attempt, why: format!("{error}{remedy}") }
}
