//! The halt lock: a replica's applications write a database for a while. On the primary
//! (`keeper`, with its table of locks) applications wait meanwhile, and what the replica
//! commits is applied as the chain's next transaction: nobody else gives out positions. On
//! the replica (`holder`) a commit counts once the primary has said that it took it.
//! Nothing of safety stands on a clock: that decides only how long the primary's
//! applications wait for a replica that is gone.

mod holder;
mod keeper;
mod table;

pub(super) use holder::{Holder, Setup};
pub(super) use keeper::Keeper;
