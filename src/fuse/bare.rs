//! The bare directory below the mount. While a node starts over its mount is away for a
//! moment, and an application that opens its database then would make a plain file there,
//! whose commits go nowhere. For that time the directory is immutable, where its file
//! system and this process's rights allow it. A file in the data directory says that
//! litefs made it so, also to a start after a crash: what an administrator made immutable
//! stays immutable. Must not touch what is in the directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::db::replace_file;

/// Holds the path of the directory that is shut.
const MARK: &str = "mount-point-shut";

/// Nobody makes anything in the directory `dir`, open as `under`, from now on.
pub(super) fn shut(under: &File, dir: &Path, data: &Path) {
    // fusermount3 mounts for a user only where that user may write.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    if let Err(error) = try_shut(under, dir, data) {
        tracing::debug!(
            %error,
            "while the node starts over, files can be made below its mount: {} cannot be made immutable",
            dir.display()
        );
    }
}

fn try_shut(under: &File, dir: &Path, data: &Path) -> io::Result<()> {
    let flags = ioctl_getflags(under)?;
    if flags.contains(IFlags::IMMUTABLE) {
        return Ok(());
    }
    let mark = data.join(MARK);
    replace_file(&mark, dir.as_os_str().as_bytes())?;
    ioctl_setflags(under, flags | IFlags::IMMUTABLE).map_err(|error| {
        // Nothing is lost if it stays.
        let _ = fs::remove_file(&mark);
        error.into()
    })
}

/// Undoes `shut`, now that something is mounted on `dir`, which is open as `under`.
pub(super) fn reopen_below(under: &File, dir: &Path, data: &Path) {
    reopen(data, |shut| if shut == dir { under.try_clone() } else { File::open(shut) });
}

/// Undoes what a node on this data directory did to its mount point before it started
/// over; nothing is mounted there.
pub fn reopen_mount_point(data: &Path) {
    reopen(data, |shut| File::open(shut));
}

fn reopen(data: &Path, open: impl FnOnce(&Path) -> io::Result<File>) {
    let mark = data.join(MARK);
    let Ok(dir) = fs::read(&mark) else { return };
    let dir = PathBuf::from(OsString::from_vec(dir));
    let done = match open(&dir) {
        Ok(under) => clear(&under),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done.and_then(|()| fs::remove_file(&mark)) {
        tracing::warn!(
            %error, "the directory {dir} stays immutable: `chattr -i {dir}` makes it writable again",
            dir = dir.display()
        );
    }
}

fn clear(under: &File) -> io::Result<()> {
    let flags = ioctl_getflags(under)?;
    if flags.contains(IFlags::IMMUTABLE) {
        ioctl_setflags(under, flags - IFlags::IMMUTABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mount point and data directory; `None` where nothing can be made immutable.
    fn dirs(scratch: &Path) -> Option<(PathBuf, PathBuf, File)> {
        let (dir, data) = (scratch.join("mnt"), scratch.join("data"));
        for path in [&dir, &data] {
            fs::create_dir(path).expect("a directory");
        }
        let under = File::open(&dir).expect("open");
        let flags = ioctl_getflags(&under).ok()?;
        if let Err(error) = ioctl_setflags(&under, flags | IFlags::IMMUTABLE) {
            eprintln!("SKIPPED: no immutable directories here: {error}");
            return None;
        }
        ioctl_setflags(&under, flags).expect("the flags as they were");
        Some((dir, data, under))
    }

    fn is_shut(dir: &Path) -> bool {
        File::create(dir.join("x")).and_then(|_| fs::remove_file(dir.join("x"))).is_err()
    }

    #[test]
    fn a_mount_point_that_is_shut_takes_nothing_until_it_is_opened_again() {
        let scratch = tempfile::tempdir().expect("a directory");
        let Some((dir, data, under)) = dirs(scratch.path()) else { return };
        shut(&under, &dir, &data);
        assert!(is_shut(&dir));
        // As if it had crashed: the next start finds the mark.
        reopen_mount_point(&data);
        assert!(!is_shut(&dir));
        shut(&under, &dir, &data);
        shut(&under, &dir, &data);
        reopen_below(&under, &dir, &data);
        assert!(!is_shut(&dir));
        assert!(!data.join(MARK).exists());
    }

    #[test]
    fn what_an_administrator_made_immutable_stays_so() {
        let scratch = tempfile::tempdir().expect("a directory");
        let Some((dir, data, under)) = dirs(scratch.path()) else { return };
        let flags = ioctl_getflags(&under).expect("its flags");
        ioctl_setflags(&under, flags | IFlags::IMMUTABLE).expect("chattr +i");
        shut(&under, &dir, &data);
        reopen_below(&under, &dir, &data);
        reopen_mount_point(&data);
        assert!(is_shut(&dir));
        ioctl_setflags(&under, flags).expect("chattr -i");
    }

    #[test]
    fn a_mount_point_that_is_gone_is_forgotten() {
        let scratch = tempfile::tempdir().expect("a directory");
        fs::write(scratch.path().join(MARK), b"/nowhere/mnt").expect("write");
        reopen_mount_point(scratch.path());
        assert!(!scratch.path().join(MARK).exists());
    }
}
