//! What stat says. Must not decide rights.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

/// How long the kernel may trust names and attributes: it makes every local change
/// itself and is told of the others.
pub(super) const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// How long it may trust what is made up at reading.
pub(super) const NEVER: Duration = Duration::ZERO;

/// The attributes of the backing file or directory.
pub(super) fn of(ino: u64, metadata: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: time(metadata.mtime(), metadata.mtime_nsec()),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: if metadata.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of a file that is made up at reading; owner and time as `like`.
pub(super) fn made_up(ino: u64, size: u64, like: &Metadata) -> FileAttr {
    let mtime = time(like.mtime(), like.mtime_nsec());
    FileAttr {
        size,
        blocks: 0,
        atime: mtime,
        mtime,
        ctime: mtime,
        kind: FileType::RegularFile,
        perm: 0o444,
        nlink: 1,
        ..of(ino, like)
    }
}

/// What the kernel remembers as "there is no such name".
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let nanoseconds = Duration::from_nanos(nanoseconds.unsigned_abs());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_and_absurd_ones_do_not_panic() {
        assert_eq!(time(-1, 500_000_000), UNIX_EPOCH - Duration::from_millis(500));
        assert_eq!(time(1, 1), UNIX_EPOCH + Duration::new(1, 1));
        time(i64::MIN, 0);
        time(i64::MAX, i64::MAX);
    }

    #[test]
    fn modes_and_sizes_are_those_of_the_backing_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        std::fs::write(&path, b"12345").expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        let attr = of(7, &std::fs::metadata(&path).expect("stat"));
        assert_eq!((attr.ino.0, attr.size, attr.perm, attr.kind), (7, 5, 0o640, FileType::RegularFile));
        let made_up = made_up(8, 34, &std::fs::metadata(&path).expect("stat"));
        assert_eq!((made_up.ino.0, made_up.size, made_up.perm), (8, 34, 0o444));
    }
}
