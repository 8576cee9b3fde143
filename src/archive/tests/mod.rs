//! Tests of the archive, on stores in memory and on disk, with lost replies and
//! crashes at every step.

mod disturbed;
mod fencing;
mod formats;
mod model;
#[path = "../../../tests/support/outside.rs"]
mod outside;
mod reading;
mod upkeep;
