//! One database: its files on the local disk, and the capture of its committed
//! transactions into the change log. Blocking; must not know FUSE, HTTP or the
//! archive.

mod context;
mod error;
mod paths;

pub use context::{OwnMount, WAL_INDEX_HEADER, WalIndex};
pub use error::DbError;
pub use paths::{FileKind, Paths};
