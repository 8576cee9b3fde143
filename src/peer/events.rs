//! Events of a node (`GET /events`): positions as they move and changes of the
//! primary, for any number of listeners. Must not hold up whoever publishes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::words::{Checksum, DbName, Pos, Timestamp, Txid};

/// How many events a listener may be behind before it is cut off.
const BACKLOG: usize = 1024;

/// One event, as a line of JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Event {
    /// The first line of every stream.
    Init {
        /// What holds now.
        data: InitData,
    },
    /// A transaction was committed or applied here.
    Tx {
        /// In which database.
        db: DbName,
        /// Which.
        data: TxData,
    },
    /// The primary is another one now, or unknown.
    PrimaryChange {
        /// Which.
        data: PrimaryData,
    },
}

/// What holds when a stream of events begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitData {
    /// Whether this node is the primary.
    pub is_primary: bool,
    /// The primary's hostname, when it is another node and known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
    /// Where each database stands.
    pub positions: BTreeMap<DbName, Pos>,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TxData {
    /// Its id, 16 hexadecimal digits.
    #[serde(rename = "txID", with = "text")]
    pub txid: Txid,
    /// The checksum of the database after it, 16 hexadecimal digits.
    #[serde(with = "text")]
    pub post_apply_checksum: Checksum,
    /// Bytes in a page; zero for a dropped database.
    pub page_size: u32,
    /// Pages in the database after it.
    pub commit: u32,
    /// When, RFC 3339.
    #[serde(serialize_with = "text::serialize", deserialize_with = "time")]
    pub timestamp: Timestamp,
}

/// Who is primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrimaryData {
    /// Whether this node is it.
    pub is_primary: bool,
    /// Its hostname, when it is another node and known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
}

/// Where a node publishes its events; cloned freely.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Event>);

/// The events from the moment of subscribing on.
pub type Subscription = broadcast::Receiver<Event>;

impl Events {
    /// No listeners yet.
    pub fn new() -> Events {
        Events(broadcast::Sender::new(BACKLOG))
    }

    /// Tells every listener; never blocks.
    pub fn publish(&self, event: Event) {
        // No listener is no error.
        let _ = self.0.send(event);
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.0.receiver_count()
    }

    /// The events from now on.
    pub fn subscribe(&self) -> Subscription {
        self.0.subscribe()
    }
}

impl Default for Events {
    fn default() -> Events {
        Events::new()
    }
}

mod text {
    //! Values written as they print.

    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Display;
    use std::str::FromStr;

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

fn time<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    chrono::DateTime::parse_from_rfc3339(&text)
        .map(|time| Timestamp::from_millis(time.timestamp_millis()))
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_reads_as_litefs_clients_expect_it() {
        let event = Event::Tx {
            db: DbName::new("my.db").expect("a name"),
            data: TxData {
                txid: Txid::new(42),
                post_apply_checksum: Checksum::EMPTY,
                page_size: 4096,
                commit: 3,
                timestamp: Timestamp::from_millis(1_700_000_000_123),
            },
        };
        let line = serde_json::to_string(&event).expect("json");
        assert_eq!(
            line,
            r#"{"type":"tx","db":"my.db","data":{"txID":"000000000000002a","postApplyChecksum":"8000000000000000","pageSize":4096,"commit":3,"timestamp":"2023-11-14T22:13:20.123Z"}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).expect("reads back"), event);
    }

    #[test]
    fn publishing_without_listeners_is_fine() {
        let events = Events::new();
        let change = Event::PrimaryChange { data: PrimaryData { is_primary: true, hostname: None } };
        events.publish(change.clone());
        let mut listener = events.subscribe();
        events.publish(change.clone());
        assert_eq!(listener.try_recv(), Ok(change));
    }
}
