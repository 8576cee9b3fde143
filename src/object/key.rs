//! What an object's key may look like, the same for every kind of store. Must not
//! know what keys mean.

use super::{ObjectError, ObjectErrorKind};

/// S3 allows 1024 bytes for a whole key; the store's own prefix takes some.
const MAX_KEY: usize = 900;
/// A component must fit a file name (NAME_MAX).
const MAX_COMPONENT: usize = 255;

/// Why `key` is no key, or `None`.
pub(super) fn fault(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        return Some("it is empty");
    }
    if key.len() > MAX_KEY {
        return Some("it is longer than 900 bytes");
    }
    if key.chars().any(char::is_control) {
        return Some("it has control characters");
    }
    for component in key.split('/') {
        match component {
            "" => return Some("it begins or ends with a slash or has two in a row"),
            "." | ".." => return Some("a component is . or .."),
            long if long.len() > MAX_COMPONENT => return Some("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    None
}

/// `Ok` for a key, else the error that `attempt` on it fails with.
pub(super) fn check(attempt: &str, key: &str) -> Result<(), ObjectError> {
    match fault(key) {
        None => Ok(()),
        Some(why) => Err(ObjectError {
            kind: ObjectErrorKind::Unsupported,
            attempt: format!("{attempt} {key:?}"),
            why: format!("this is no key for an object: {why}"),
        }),
    }
}
