//! Live replication: one stream for each replica, over HTTP (`POST /stream`), with both
//! bodies open at once. The server takes change sets from a `Feed`, the client gives
//! them as they come. Neither holds more than a few blocks of what is under way, so a
//! peer that stands still holds up nobody. Must not know where change sets come from or
//! what becomes of them.

mod connect;
mod feed;
mod incoming;
mod outgoing;
mod serve;
mod spool;
#[cfg(test)]
mod tests;

pub use connect::{Follow, StreamClient, StreamError};
pub use feed::{Feed, Item, OutgoingChange};
pub use incoming::{Following, Received};
pub(super) use serve::stream;
pub use spool::{Ltx, ReceivedChange};

use std::time::Duration;

/// How often each side says that it is alive, if it has nothing else to say.
pub const BEAT: Duration = Duration::from_secs(1);

/// How long either side believes that the other lives though nothing comes from it.
pub const DEADLINE: Duration = Duration::from_secs(4);

/// How the two sides keep time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often each says that it is alive.
    pub beat: Duration,
    /// After how much silence the other is given up.
    pub deadline: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { beat: BEAT, deadline: DEADLINE }
    }
}
