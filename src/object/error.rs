//! The object store's error: what kind it is decides what a caller does, its text
//! tells a person what was attempted on which key and what to do. Must not hold
//! credentials.

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectErrorKind {
    /// The condition of a put did not hold; nothing was written.
    Precondition,
    /// The object is not there.
    NotFound,
    /// The store cannot be reached, is overloaded or timed out, and nothing was
    /// changed as far as the store says; trying later may help.
    Unreachable,
    /// The reply was lost: the put may or may not have happened.
    Unknown,
    /// The store refuses this node: credentials, rights, clock, bucket.
    Refused,
    /// The store cannot do what was asked (no conditional puts, …).
    Unsupported,
    /// What came back is not what was stored.
    Damaged,
    /// The local side failed: a file, a full disk.
    Local,
}

/// A failed operation on the object store.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{attempt} failed: {why}")]
pub struct ObjectError {
    /// What kind of failure.
    pub kind: ObjectErrorKind,
    /// What was attempted: operation, key, store.
    pub attempt: String,
    /// What went wrong and what to do about it.
    pub why: String,
}

impl ObjectError {
    /// Whether trying again later may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ObjectErrorKind::Unreachable | ObjectErrorKind::Unknown)
    }
}
