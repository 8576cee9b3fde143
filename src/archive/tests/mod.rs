//! Tests of the archive, on stores in memory and on disk, with lost replies and
//! crashes at every step.

mod fencing;
mod formats;
mod model;
mod reading;
mod upkeep;
