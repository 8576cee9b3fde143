//! How the kernel handles the reads and writes of each kind of file. A function of the
//! inode, hardly of the open: the kernel refuses most mixtures on one inode with EIO.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use fuser::{BackingId, FopenFlags};

use crate::db::FileKind;

/// How a file's reads and writes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reads from the kernel's page cache; each write comes to the daemon.
    Cached,
    /// Each read and write comes to the daemon, as the application made it.
    Direct,
    /// The kernel goes to the backing file itself.
    Passthrough,
    /// As direct, where other opens of the inode are passed through (FOPEN_DIRECT_IO goes
    /// before FOPEN_PASSTHROUGH, and both together before neither).
    Beside,
}

/// The mode of a file of a database. The database file is never passed through: the
/// kernel would invalidate its access time at each read, and SQLite's fstat per
/// transaction would cost a round trip. Without passthrough the journal is direct, so
/// that a write arrives in one piece, and the WAL cached, for its readers. Where a commit
/// counts only once the archive has it (`archive_first`), both are direct: the write that
/// commits must be seen, in one piece, and waits. So are they for the applications of a
/// replica (`replica`), which may get the halt lock while they have them open.
pub(super) fn of(kind: FileKind, passthrough: bool, archive_first: bool, replica: bool) -> Mode {
    match (kind, passthrough) {
        (FileKind::Database, _) => Mode::Cached,
        (FileKind::Journal | FileKind::Wal, _) if archive_first => Mode::Direct,
        (FileKind::Journal | FileKind::Wal, true) if replica => Mode::Beside,
        (FileKind::Wal, false) if replica => Mode::Direct,
        (_, true) => Mode::Passthrough,
        (FileKind::Journal, false) => Mode::Direct,
        (FileKind::Wal | FileKind::Shm, false) => Mode::Cached,
    }
}

/// The flags of the reply to an open. `flush`: whether each close(2) is to be told.
pub(super) fn flags(mode: Mode, flush: bool) -> FopenFlags {
    let mode = match mode {
        Mode::Cached => FopenFlags::FOPEN_KEEP_CACHE,
        Mode::Direct | Mode::Beside => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        // The kernel allows no KEEP_CACHE beside passthrough (FOPEN_PASSTHROUGH_MASK).
        Mode::Passthrough => FopenFlags::empty(),
    };
    if flush { mode } else { mode | FopenFlags::FOPEN_NOFLUSH }
}

/// Tries to register a file of the data directory for passthrough, once, before
/// anything is open: without CAP_SYS_ADMIN, or on too deep a stack of file systems,
/// the kernel refuses.
pub(super) fn probe(device: impl AsFd, dir: &Path) -> io::Result<()> {
    let path = dir.join(".passthrough-probe");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
    std::fs::remove_file(&path)?;
    let id = BackingId::create_raw(device.as_fd(), &file)?;
    /// `_IOW(229, 2, uint32_t)`, include/uapi/linux/fuse.h.
    const FUSE_DEV_IOC_BACKING_CLOSE: libc::Ioctl = 0x4004_e502_u32 as libc::Ioctl;
    // SAFETY: the ioctl reads one u32, which lives until it returns.
    let done = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &id) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_cached_and_never_passed_through() {
        assert_eq!(of(FileKind::Database, true, false, true), Mode::Cached);
        assert_eq!(of(FileKind::Database, false, true, false), Mode::Cached);
        assert_eq!(of(FileKind::Wal, true, false, false), Mode::Passthrough);
        assert_eq!(of(FileKind::Shm, false, false, true), Mode::Cached);
        assert_eq!(of(FileKind::Wal, true, true, false), Mode::Direct);
        assert_eq!(of(FileKind::Shm, true, true, true), Mode::Passthrough);
        assert_eq!(of(FileKind::Wal, true, false, true), Mode::Beside);
        assert_eq!(of(FileKind::Wal, false, false, true), Mode::Direct);
    }

    #[test]
    fn passthrough_goes_without_keep_cache() {
        assert_eq!(flags(Mode::Passthrough, false), FopenFlags::FOPEN_NOFLUSH);
        assert_eq!(flags(Mode::Passthrough, true), FopenFlags::empty());
    }
}
