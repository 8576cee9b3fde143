//! Files of the mount that the daemon uses as an application would: to hold locks, to
//! write the WAL and its index. All of it is done on the thread of [`super::own`], which
//! has a descriptor table of its own: it may block in the mount, and nothing that the
//! daemon does there can keep /dev/fuse open. Never maps anything.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};

use crate::db::{LockTo, OwnFile};

/// How long the thread may take: it may have much to write.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The kernel may remember for a moment that there is no such file.
const RETRY: Duration = Duration::from_millis(1);
const TRIES: u32 = 1000;

/// Something to be done with the files that are open.
pub(super) type Job = Box<dyn FnOnce(&mut HashMap<u64, File>) + Send>;

/// Gives the thread something to do; false if it has ended.
pub(super) type Doer = Arc<dyn Fn(Job) -> bool + Send + Sync>;

/// An open file.
struct Far {
    number: u64,
    doer: Doer,
}

/// Does something on the thread and waits for it.
fn ask<T: Send + 'static>(
    doer: &Doer,
    job: impl FnOnce(&mut HashMap<u64, File>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (answer, wait) = crossbeam_channel::bounded(1);
    let sent = doer(Box::new(move |files| {
        // Who no longer waits has given up.
        let _ = answer.send(job(files));
    }));
    if !sent {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the mount has ended"));
    }
    wait.recv_timeout(PATIENCE)
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the own mount does not answer"))?
}

/// Opens a file under a number that was never used.
pub(super) fn open(doer: &Doer, number: u64, path: PathBuf, create: bool) -> io::Result<Box<dyn OwnFile>> {
    let base = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let flags = if create { base | OFlags::CREATE } else { base };
    ask(doer, move |files| {
        let mut tries = 0;
        loop {
            match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
                Ok(descriptor) => {
                    files.insert(number, File::from(descriptor));
                    return Ok(());
                }
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::STALE) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(error.into()),
            }
        }
    })?;
    Ok(Box::new(Far { number, doer: doer.clone() }))
}

/// Unlinks a file; one that is not there is fine.
pub(super) fn unlink(doer: &Doer, path: PathBuf) -> io::Result<()> {
    ask(doer, move |_| match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// Makes the kernel ask for a file's size until it knows of `len` bytes. One that is
/// not there is fine.
pub(super) fn grown(doer: &Doer, path: PathBuf, len: u64) -> io::Result<()> {
    let size = move |flags| match statx(CWD, &path, flags, StatxFlags::SIZE) {
        Ok(found) => Ok(Some(found.stx_size)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    };
    ask(doer, move |_| {
        for _ in 0..TRIES {
            // What the kernel has; the answer to the other is the daemon's.
            if size(AtFlags::STATX_DONT_SYNC)?.is_none_or(|known| known >= len) {
                return Ok(());
            }
            size(AtFlags::STATX_FORCE_SYNC)?;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not take a file's new size"))
    })
}

impl Far {
    fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let number = self.number;
        ask(&self.doer, move |files| match files.get(&number) {
            Some(file) => job(file),
            None => Err(io::ErrorKind::NotFound.into()),
        })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let number = self.number;
        // Where the thread has ended the file is closed.
        let _ = (self.doer)(Box::new(move |files| drop(files.remove(&number))));
    }
}

impl OwnFile for Far {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.with(move |file| read(file, offset, len))
    }

    fn write(&self, writes: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        self.with(move |file| writes.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset)))
    }

    fn is_linked(&self) -> io::Result<bool> {
        self.with(|file| Ok(rustix::fs::fstat(file)?.st_nlink > 0))
    }

    fn try_lock(&self, to: LockTo, bytes: Range<u64>) -> io::Result<bool> {
        self.with(move |file| try_lock(file, to, &bytes))
    }
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Sets a lock of the open file (not of the process), or says that others are in the
/// way.
fn try_lock(file: &File, to: LockTo, bytes: &Range<u64>) -> io::Result<bool> {
    // SAFETY: `flock` is a plain C struct for which zeros are a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match to {
        LockTo::Shared => libc::F_RDLCK,
        LockTo::Exclusive => libc::F_WRLCK,
        LockTo::Free => libc::F_UNLCK,
    };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = i64::try_from(bytes.start).unwrap_or(i64::MAX);
    lock.l_len = i64::try_from(bytes.end - bytes.start).unwrap_or(1);
    // SAFETY: the call reads `lock`, which lives until it returns.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
