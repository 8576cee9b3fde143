//! What the user chooses about the mount. Must not act.

use std::path::PathBuf;

/// Whether journal, WAL and shm go past the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Passthrough {
    /// Where the kernel (6.9 and later) and the privileges allow it.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// The mount as configured.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where; created if missing.
    pub dir: PathBuf,
    /// Whether other users may enter; their rights follow the files' modes.
    pub allow_other: bool,
    /// Whether journal, WAL and shm go past the daemon.
    pub passthrough: Passthrough,
}
