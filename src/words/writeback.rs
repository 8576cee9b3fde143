//! When the disk begins to write. Must not decide what is durable.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Has the disk begin with `len` bytes at `offset` that were just written, so that the
/// fsync to come does not find all of it still to do; 0 bytes: all that follow. Only a
/// hint: the fsync tells of failures.
pub fn start_writing(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: the call takes no pointers, and the descriptor is open.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
