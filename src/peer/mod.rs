//! A node's HTTP API: its server, its client, the stream between nodes, and the
//! traits through which the server asks the node. Must not know how a node does what is asked.

mod auth;
mod bind;
mod bridge;
mod client;
mod events;
mod halts;
mod handlers;
mod metrics;
mod server;
mod service;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod wire;

pub use bind::BindError;
pub use client::{Client, ClientError, Timeouts};
pub use events::{Event, Events, InitData, PrimaryData, Subscription, TxData};
pub use halts::{HaltClaim, Halted};
pub use metrics::render as render_metrics;
pub use server::{ServeError, Server, ServerOptions, serve};
pub use service::{
    ArchiveState, ArchiveStatus, DatabaseStatus, Export, Health, Info, MountStatus, Primary, ReplicaStatus,
    Role, Service, ServiceError, Status,
};
