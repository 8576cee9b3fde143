//! What a primary tells its replicas: the change sets of its own log, read by place for
//! each of them, so that a slow replica costs nothing but its place in the log. Woken
//! by commits. Must not wait for a replica.

mod places;
mod reading;
mod replicas;

pub(super) use replicas::{Feeds, Replica, Setup};
