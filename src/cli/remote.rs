//! Which node a command talks to: its address and token from the arguments, the
//! environment or the configuration. Must not talk to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{self, Config, ConfigError};
use crate::peer::{Client, Timeouts};

use super::args::Remote;
use super::error::CliError;

const DEFAULT: &str = "http://127.0.0.1:20202";

/// A client of the node that the arguments name.
pub fn client(remote: &Remote) -> Result<Client, CliError> {
    let token = remote.token.clone().or_else(|| std::env::var("LITEFS_TOKEN").ok());
    let (url, token) = match (&remote.url, configured(remote)?) {
        (Some(url), _) => (url.clone(), token),
        (None, Some(config)) => {
            let own = config.http.token.map(|token| token.reveal().to_owned());
            (url_of(config.http.addr), token.or(own))
        }
        (None, None) => (DEFAULT.to_owned(), token),
    };
    Client::new(&url, token, Timeouts::default()).map_err(CliError::usage)
}

/// The configuration, where one is needed and found.
fn configured(remote: &Remote) -> Result<Option<Config>, CliError> {
    if remote.url.is_some() {
        return Ok(None);
    }
    match config::find(remote.config.as_deref()) {
        Err(ConfigError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(file) => match Config::load(&file, true) {
            Ok(config) => Ok(Some(config)),
            Err(error) => Err(CliError::usage(format!("{error} (or name the node's API with --url)"))),
        },
    }
}

/// How to reach an API on this machine that listens on `addr`.
fn url_of(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_on_every_interface_is_reached_over_loopback() {
        for (addr, url) in [
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("10.0.0.7:1", "http://10.0.0.7:1"),
        ] {
            assert_eq!(url_of(addr.parse().expect("an address")), url);
        }
    }
}
