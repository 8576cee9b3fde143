//! Capture and recovery, proved with real SQLite but without a kernel: a VFS does
//! with a store what the mount does, so every step can be seen, failed and cut off.

#[path = "../support/mod.rs"]
mod support;

mod check;
mod crash;
mod disk;
mod failing;
mod io;
mod large;
mod modes;
mod nodes;
mod objects;
mod parking;
mod power;
mod roles;
mod several;
mod speed;
mod together;
mod vfs;
mod wal;
mod workload;
mod world;
