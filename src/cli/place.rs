//! Which archive a command reads: `--storage`, or `[storage]` of the configuration.
//! Must not write to it.

use crate::archive::{Archive, Options};
use crate::config::{self, Config};
use crate::object::{self, Location};

use super::args::Place;
use super::error::CliError;

/// Opens the archive.
pub fn archive(place: &Place) -> Result<Archive, CliError> {
    let location = match &place.storage {
        Some(url) => location(url, &object::Options::default())?,
        None => configured(&Config::load(&config::find(place.config.as_deref())?, true)?)?,
    };
    Ok(Archive::open(location.open()?, Options::default())?)
}

/// Where the archive of a configuration is.
pub fn configured(config: &Config) -> Result<Location, CliError> {
    let storage = &config.storage;
    let options = object::Options {
        endpoint: storage.endpoint.clone(),
        region: storage.region.clone(),
        force_path_style: storage.force_path_style,
        credentials: None,
    };
    location(&storage.url, &options)
}

fn location(url: &str, options: &object::Options) -> Result<Location, CliError> {
    Location::parse(url, options).map_err(CliError::usage)
}
