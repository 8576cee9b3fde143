//! litefs: a FUSE file system in which ordinary SQLite databases live and
//! never get lost, for machines that are rarely up.
//!
//! Modules are layered, lowest first; a module uses those before it and never
//! those after it (`tests/layers.rs` fails otherwise). See docs/ARCHITECTURE.md.

// Some tests here share files with those in tests/, which use the library by its name.
#[cfg(test)]
extern crate self as litefs;

pub mod words;

pub mod ltx;

pub mod sqlite;

pub mod object;

pub mod db;

pub mod lease;

pub mod archive;

pub mod store;

pub mod fuse;

pub mod peer;

pub mod proxy;

pub mod exec;

pub mod node;

pub mod config;

pub mod cli;
