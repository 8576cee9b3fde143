//! What the configuration names and this version does not do: refused with a clear
//! message rather than ignored. The defaults of such keys, while they last, are
//! here too. Must become empty.

use super::error::Fault;
use super::table::Places;
use super::*;

/// `storage.hydration` when it is not set.
pub(super) const HYDRATION: Hydration = Hydration::Full;

pub(super) fn refuse(config: &Config, places: &Places) -> Result<(), Fault> {
    let (storage, lease) = (&config.storage, &config.lease);
    let refused = [
        (!lease.databases.is_empty(), "lease.databases", "lease.databases", "no such key"),
        (
            storage.hydration == Hydration::Lazy,
            "storage.hydration",
            "storage.hydration = \"lazy\"",
            "\"full\"",
        ),
    ];
    match refused.into_iter().find(|(used, ..)| *used) {
        None => Ok(()),
        Some((_, key, what, instead)) => Err(Fault::new(
            places.of(key),
            format!("{what} is not built into this version yet; use {instead}"),
        )),
    }
}
