//! Capture and recovery, proved with real SQLite but without a kernel: a VFS does
//! with a store what the mount does, so every step can be seen, failed and cut off.

mod check;
mod crash;
mod io;
mod modes;
mod vfs;
mod workload;
mod world;
