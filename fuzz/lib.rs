//! The modules of litefs that decode, and nothing else.

#[path = "../src/words/mod.rs"]
pub mod words;

#[path = "../src/ltx/mod.rs"]
pub mod ltx;

#[path = "../src/sqlite/mod.rs"]
pub mod sqlite;
