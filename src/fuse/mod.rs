//! The mount: SQLite's files as the kernel asks for them, answered by the store.
//! Thin: it must not know transactions, the archive or the cluster.
//!
//! Threads: a few request loops answer what takes microseconds; a pool does what may
//! fsync or wait; the watch follows commits that only the kernel sees; the notifier
//! drops what the kernel has cached; and one thread with its own descriptor table is
//! the daemon as a client of its own mount (`own.rs` says why).

mod adapter;
mod attributes;
mod awake;
mod bare;
mod committing;
mod counters;
mod creating;
mod errno;
mod error;
mod halting;
mod handles;
mod inodes;
mod listing;
mod modes;
mod mount;
mod mounting;
mod names;
mod notify;
mod opening;
mod options;
mod own;
mod own_files;
mod permissions;
mod placement;
mod pool;
mod removing;
mod spares;
mod tree;
mod unsynced;
mod virtuals;
mod watch;

pub use bare::reopen_mount_point;
pub use counters::{Op, OpCounts};
pub use error::MountError;
pub use halting::{HaltGuard, Halts};
pub use mount::{Mount, Unmounted};
pub use options::{MountOptions, Passthrough};
