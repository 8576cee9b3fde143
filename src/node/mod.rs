//! A node: recovers, stands at the archive's head, mounts, takes its role, runs the
//! commands, publishes what is committed, and stops as a flush. It wires the other
//! modules and fixes their order; it must not know configuration files or the command
//! line.

mod align;
mod backlog;
mod encode;
mod error;
mod feed;
mod follow;
mod halt;
mod images;
mod import;
mod join;
mod last_call;
mod live;
mod options;
mod parking;
mod proxy_view;
mod publish;
mod reign;
mod roles;
mod run;
mod service;
#[cfg(test)]
mod sim;
mod upkeep;

pub use error::NodeError;
pub use import::internal_copy;
pub use options::{Durability, LeaseChoice, NodeOptions, OnUnreachable, ProxyChoice};
pub use run::{Outcome, run};
