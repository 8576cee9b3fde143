//! Several nodes on one archive: real processes with their own mounts and, where this
//! machine allows it, a network each. What happens to machines happens to them; what was
//! acknowledged is there or parked afterwards, and all have the same bytes.
#![allow(missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod network;
mod nodes;
mod stories;
