//! The HTTP proxy before an application: reads are answered here as soon as this node
//! has what the client has seen, writes go to the primary. Must not know how a node
//! gets its role or its positions.

mod answer;
mod body;
mod gate;
mod handle;
mod headers;
mod rules;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod token;
mod tunnel;
mod upstream;
mod view;
mod wait;

pub use gate::WritesHeld;
pub use server::{Proxy, ProxyError, ProxyOptions, start};
pub use token::Token;
pub use upstream::Address;
pub use view::{Forward, Primary, Role, View};
