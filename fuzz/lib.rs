//! The modules of litefs that decode, and nothing else.

#[path = "../src/words/mod.rs"]
pub mod words;

#[path = "../src/ltx/mod.rs"]
pub mod ltx;

#[path = "../src/sqlite/mod.rs"]
pub mod sqlite;

#[path = "../src/peer/wire/mod.rs"]
pub mod wire;

pub mod peer {
    //! Where the daemon has it.
    pub use crate::wire;
}
