//! The commands that a node runs while it serves: how they are written, on which
//! nodes they run, how they are started, signalled and ended. Must not know the
//! mount or the cluster.

mod child;
mod command;
mod split;
mod supervisor;
#[cfg(test)]
mod tests;

pub use command::{Command, Standing};
pub use split::BadCommand;
pub use supervisor::{Ended, Supervisor};

/// The signals that a node passes on to its command (signal(7)).
pub const FORWARDED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
