//! Who is told that something has changed: a position that readers see, the role. Must
//! not know what.

use std::sync::{PoisonError, RwLock};

type Told = Box<dyn Fn() + Send + Sync>;

/// Those who are told.
#[derive(Default)]
pub(super) struct Changes(RwLock<Vec<Told>>);

impl Changes {
    pub fn add(&self, told: Told) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(told);
    }

    pub fn tell(&self) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(|told| told());
    }
}
