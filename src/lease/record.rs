//! What the lease's object, or its key in Consul, says. Must not decide anything.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lease::Member;
use crate::words::{Epoch, NodeId};

/// The format of the object.
const VERSION: u32 = 1;

/// What the lease says. It is never deleted, so that the epoch only grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::lease) struct Record {
    version: u32,
    /// The epoch of the last term.
    pub(in crate::lease) epoch: Epoch,
    /// Whose term it is or was.
    #[serde(flatten)]
    pub(in crate::lease) member: Member,
    /// Whether it goes on.
    #[serde(flatten)]
    pub(in crate::lease) state: State,
    /// How long a term holds without renewal.
    ttl_ms: u64,
    /// Different in every object that was ever put, so that ETags that are hashes
    /// never repeat and a node knows its own put again after a lost reply.
    pub(in crate::lease) nonce: String,
}

/// Whether a term goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(in crate::lease) enum State {
    /// It goes on.
    Held,
    /// It has ended; anyone may take over.
    Released,
    /// It has ended; this node may take over, others as if it went on.
    Given {
        /// That node.
        to: NodeId,
    },
}

impl Record {
    pub(in crate::lease) fn new(
        epoch: Epoch,
        member: Member,
        state: State,
        ttl: Duration,
        nonce: u128,
    ) -> Record {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Record { version: VERSION, epoch, member, state, ttl_ms, nonce: format!("{nonce:032x}") }
    }

    pub(in crate::lease) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    pub(in crate::lease) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads an object, or says what is wrong with it.
    pub(in crate::lease) fn decode(bytes: &[u8]) -> Result<Record, String> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match record.version {
            VERSION => Ok(record),
            newer => Err(format!("its format is {newer}, this litefs knows {VERSION}: update litefs")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_what_it_wrote() {
        let member = Member {
            node: NodeId::new(7),
            hostname: "a".to_owned(),
            advertise_url: Some("http://a:1".to_owned()),
            proxy_url: Some("http://a:2".to_owned()),
        };
        for state in [State::Held, State::Released, State::Given { to: NodeId::new(9) }] {
            let record = Record::new(Epoch::new(3), member.clone(), state, Duration::from_secs(10), 42);
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
        for bad in [&b""[..], b"{}", b"null", br#"{"version":2}"#, &[0xff; 40]] {
            assert!(Record::decode(bad).is_err());
        }
    }
}
