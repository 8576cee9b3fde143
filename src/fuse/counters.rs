//! How often the kernel asked for what: round trips decide the mount's speed, so
//! tests pin their number. Must not slow a request down.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ops {
    ($($variant:ident $name:literal,)*) => {
        /// A request of the kernel that it waits for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op {
            $(
                #[doc = concat!("`", $name, "`")]
                $variant,
            )*
        }

        impl Op {
            /// Every request.
            pub const ALL: &[Op] = &[$(Op::$variant,)*];

            /// Its name in metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Op::$variant => $name,)*
                }
            }
        }
    };
}

ops! {
    Lookup "lookup",
    Getattr "getattr",
    Setattr "setattr",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Symlink "symlink",
    Rename "rename",
    Link "link",
    Open "open",
    Create "create",
    Read "read",
    Write "write",
    Flush "flush",
    Release "release",
    Fsync "fsync",
    Opendir "opendir",
    Readdir "readdir",
    Fsyncdir "fsyncdir",
    Statfs "statfs",
    Xattr "xattr",
    Access "access",
    Ioctl "ioctl",
    Fallocate "fallocate",
    Lseek "lseek",
    CopyRange "copy_file_range",
}

/// Counts as they run.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Op::ALL.len()]);

impl Counters {
    pub(super) fn add(&self, op: Op) {
        self.0[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> OpCounts {
        OpCounts(std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed)))
    }
}

/// Counts at one moment. The daemon's own requests are not in them, nor is FORGET,
/// which nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpCounts([u64; Op::ALL.len()]);

impl OpCounts {
    /// Of one request.
    pub fn get(&self, op: Op) -> u64 {
        self.0[op as usize]
    }

    /// Of all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &OpCounts) -> OpCounts {
        OpCounts(std::array::from_fn(|at| self.0[at].saturating_sub(earlier.0[at])))
    }

    /// Those that are not zero.
    pub fn nonzero(&self) -> impl Iterator<Item = (Op, u64)> + '_ {
        Op::ALL.iter().map(|op| (*op, self.get(*op))).filter(|(_, count)| *count > 0)
    }
}
