//! Names: of a database (its path below the mount), of a node, of a cluster.
//! Must not touch files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest database name in bytes: with the longest suffix it must still fit
/// a file name (NAME_MAX is 255).
const MAX_COMPONENT: usize = 240;
const MAX_NAME: usize = 1024;

/// The endings of the files beside a database; a database's own name has none.
const SUFFIXES: [&str; 5] = ["-journal", "-wal", "-shm", "-pos", "-lock"];

/// A database's name: its path below the mount, components separated by `/`,
/// such as `my.db` or `tenants/7.db`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DbName(std::sync::Arc<str>);

/// A text that is no database name, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a database name: {why}")]
pub struct BadDbName {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl DbName {
    /// Checks a name: relative, no `.`/`..`, no empty or hidden component, no
    /// control characters, none of SQLite's or LiteFS's suffixes.
    pub fn new(name: &str) -> Result<DbName, BadDbName> {
        match Self::fault(name) {
            Some(why) => Err(BadDbName { name: name.to_owned(), why }),
            None => Ok(DbName(name.into())),
        }
    }

    fn fault(name: &str) -> Option<&'static str> {
        if name.is_empty() {
            return Some("it is empty");
        }
        if name.len() > MAX_NAME {
            return Some("it is longer than 1024 bytes");
        }
        if name.chars().any(char::is_control) {
            return Some("it has control characters");
        }
        for component in name.split('/') {
            if component.is_empty() {
                return Some("it begins or ends with a slash or has two in a row");
            }
            if component.starts_with('.') {
                return Some("a component begins with a dot");
            }
            if component.len() > MAX_COMPONENT {
                return Some("a component is longer than 240 bytes");
            }
        }
        if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
            return Some("it ends as the files beside a database do (-journal, -wal, -shm, -pos, -lock)");
        }
        None
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DbName {
    type Err = BadDbName;
    fn from_str(name: &str) -> Result<DbName, BadDbName> {
        DbName::new(name)
    }
}

impl TryFrom<String> for DbName {
    type Error = BadDbName;
    fn try_from(name: String) -> Result<DbName, BadDbName> {
        DbName::new(&name)
    }
}

impl From<DbName> for String {
    fn from(name: DbName) -> String {
        name.0.as_ref().to_owned()
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// The id with this number; randomness is the caller's.
            pub fn new(number: u64) -> $name {
                $name(number)
            }

            /// The number.
            pub fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            /// Sixteen lower-case hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<$name, String> {
                if text.len() != 16 {
                    return Err(format!("{text:?} is not an id (16 hexadecimal digits)"));
                }
                u64::from_str_radix(text, 16)
                    .map($name)
                    .map_err(|_| format!("{text:?} is not an id (16 hexadecimal digits)"))
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<$name, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

random_id! {
    /// A hold of the halt lock: made up for each.
    HaltId
}

random_id! {
    /// A node: made up once, kept in its data directory.
    NodeId
}

random_id! {
    /// A cluster: made up when its archive is created, kept in the manifest and in
    /// every node's data directory, so that two clusters never share an archive.
    ClusterId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_mount_or_collide_are_refused() {
        for good in ["a", "my.db", "tenants/7.db", "ünï.sqlite", "a b.db", "x-wal.db"] {
            assert!(DbName::new(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            ".hidden",
            "a\0b",
            "a\n",
            "a-wal",
            "a-journal",
            "d/a-pos",
        ] {
            assert!(DbName::new(bad).is_err(), "{bad:?}");
        }
        assert!(DbName::new(&"x".repeat(241)).is_err());
    }
}
