//! Why a mount could not be made or ended, with what to do about it.

use std::io;
use std::path::PathBuf;

/// A mount that could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no FUSE in this kernel or container.
    #[error(
        "cannot mount {dir}: /dev/fuse is missing (load the kernel module `fuse`; in a container, \
         pass the device in: --device /dev/fuse --cap-add SYS_ADMIN)", dir = dir.display()
    )]
    NoDevice {
        /// The mount point.
        dir: PathBuf,
    },
    /// Neither mount(2) nor fusermount3 is allowed.
    #[error(
        "cannot mount {dir}: not permitted: {why} (run as root, or with CAP_SYS_ADMIN, or install the \
         package fuse3)", dir = dir.display()
    )]
    NotPermitted {
        /// The mount point.
        dir: PathBuf,
        /// What the system said.
        why: String,
    },
    /// `allow-other` by a user who may not.
    #[error(
        "cannot mount {dir} with allow-other as an ordinary user: add the line user_allow_other to \
         /etc/fuse.conf, or run as root", dir = dir.display()
    )]
    AllowOther {
        /// The mount point.
        dir: PathBuf,
    },
    /// The mount point is no directory.
    #[error("cannot mount {dir}: it is not a directory (choose another fuse.dir)", dir = dir.display())]
    NotADirectory {
        /// The mount point.
        dir: PathBuf,
    },
    /// Files below the mount point would disappear from sight.
    #[error(
        "cannot mount {dir}: it is not empty, and what is in it would be hidden (empty it, or choose \
         another fuse.dir)", dir = dir.display()
    )]
    NotEmpty {
        /// The mount point.
        dir: PathBuf,
    },
    /// Something else is mounted there.
    #[error(
        "cannot mount {dir}: a file system ({kind}) is mounted there already; if it is another litefs, \
         stop it first, else unmount it: umount {dir}", dir = dir.display()
    )]
    Occupied {
        /// The mount point.
        dir: PathBuf,
        /// Its type, such as `fuse.litefs`.
        kind: String,
    },
    /// Applications still use the mount.
    #[error("cannot unmount {dir}: it is in use (fuser -vm {dir} says by whom)", dir = dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {attempt} {dir}: {source}", dir = dir.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which path.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl MountError {
    /// A failed system call.
    pub(super) fn io(attempt: &'static str, dir: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> MountError {
        let dir = dir.into();
        move |source| MountError::Io { attempt, dir, source }
    }
}
