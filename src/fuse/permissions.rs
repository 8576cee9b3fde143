//! Who may do what, where other users may enter the mount. The kernel does not check:
//! with `default_permissions` it would ask for the directory's attributes again around
//! every create and unlink of a journal. So the daemon checks at open, create, unlink
//! and setattr; names that the kernel has cached can be seen by anyone.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread.
    pub pid: u32,
}

/// Rights, as the bits of a mode.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
pub(super) const EXECUTE: u32 = 1;

impl Caller {
    /// Whether the caller has every right in `wanted` on a file.
    pub(super) fn may(&self, wanted: u32, file: &Metadata) -> bool {
        self.allowed(wanted, file.mode(), file.uid(), file.gid())
    }

    fn allowed(&self, wanted: u32, mode: u32, uid: u32, gid: u32) -> bool {
        let granted = if self.uid == 0 {
            return wanted & EXECUTE == 0 || mode & 0o111 != 0;
        } else if self.uid == uid {
            mode >> 6
        } else if ((mode >> 3) ^ mode) & wanted == 0 {
            // Group and others differ in nothing that is asked for.
            mode
        } else if self.in_group(gid) {
            mode >> 3
        } else {
            mode
        };
        granted & wanted == wanted
    }

    /// Whether the caller may unlink `file` in `dir` as far as the sticky bit goes.
    pub(super) fn may_unlink(&self, file: Option<&Metadata>, dir: &Metadata) -> bool {
        dir.mode() & libc::S_ISVTX == 0
            || self.uid == 0
            || self.uid == dir.uid()
            || file.is_none_or(|file| file.uid() == self.uid)
    }

    /// Whether the caller owns the file, as chmod and utimes want it.
    pub(super) fn owns(&self, file: &Metadata) -> bool {
        self.uid == 0 || self.uid == file.uid()
    }

    /// Whether the caller is in a group. A request carries only the effective one;
    /// the others are in /proc.
    pub(super) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.supplementary().contains(&gid)
    }

    fn supplementary(&self) -> Vec<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        groups(&status)
    }
}

fn groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.map(|line| line.split_whitespace().filter_map(|gid| gid.parse().ok()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, gid: u32) -> Caller {
        Caller { uid, gid, pid: u32::MAX }
    }

    #[test]
    fn owner_group_and_others_have_their_own_bits() {
        let mode = 0o640;
        assert!(caller(1, 9).allowed(READ | WRITE, mode, 1, 1));
        assert!(caller(2, 1).allowed(READ, mode, 1, 1));
        assert!(!caller(2, 1).allowed(WRITE, mode, 1, 1));
        assert!(!caller(2, 9).allowed(READ, mode, 1, 1));
        assert!(!caller(1, 1).allowed(READ, 0o044, 1, 1), "the owner's bits count even if others have more");
    }

    #[test]
    fn root_may_all_but_run_what_nobody_may() {
        assert!(caller(0, 0).allowed(READ | WRITE, 0, 1, 1));
        assert!(!caller(0, 0).allowed(EXECUTE, 0o644, 1, 1));
    }

    #[test]
    fn groups_are_read_from_the_status_file() {
        assert_eq!(groups("Name:\tx\nGroups:\t4 27 1000 \nVmPeak:\t1\n"), vec![4, 27, 1000]);
        assert!(groups("").is_empty());
    }
}
