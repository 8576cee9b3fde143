//! What the tests on real mounts share: scratch directories, nodes, SQLite drivers
//! in other languages, comparing databases. Must not assert anything about litefs
//! beyond "it started, stopped, answered".
#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

pub mod api;
pub mod app;
pub mod chain;
pub mod content;
pub mod drivers;
pub mod line;
pub mod mounted;
pub mod node;
pub mod outside;
pub mod process;
pub mod readers;
pub mod scratch;
pub mod worker;

pub use node::{Node, Settings};
pub use outside::Outside;
pub use scratch::Scratch;

use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. Far beyond what it takes: a
/// busy machine must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `ask` gives something; panics with `what` after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether this machine can mount at all; says loudly where it cannot.
pub fn can_mount() -> bool {
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = fuse {
        eprintln!("SKIPPED: no FUSE on this machine (/dev/fuse: {error}); mount tests need it");
        return false;
    }
    true
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
