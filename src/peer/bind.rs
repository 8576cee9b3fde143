//! Binding the API's port: refuses to be open to a network without a token, and
//! waits a little for a port that a dying process still holds. Must not serve.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// After kill -9 the kernel closes the old process' sockets only once its last
/// thread is gone, which a thread in a FUSE or disk wait can delay.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// The API could not be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It would be open to a network without a token.
    #[error(
        "refusing to serve the API on {addr} without a token: anyone who reaches it could read and replace \
         every database; set http.token, or http.addr to a loopback address"
    )]
    Open {
        /// Where.
        addr: SocketAddr,
    },
    /// The port is taken.
    #[error(
        "serving the API on {addr} failed: the address is in use; stop the process that holds it (is litefs running \
         already?) or set another http.addr"
    )]
    Taken {
        /// Where.
        addr: SocketAddr,
    },
    /// Something else.
    #[error("serving the API on {addr} failed: {source}; check http.addr")]
    Io {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket. The standard library sets SO_REUSEADDR, so connections of a
/// process that is gone (TIME_WAIT) are no obstacle.
pub fn bind(addr: SocketAddr, token: Option<&str>) -> Result<TcpListener, BindError> {
    bind_within(addr, token, PATIENCE)
}

fn bind_within(addr: SocketAddr, token: Option<&str>, patience: Duration) -> Result<TcpListener, BindError> {
    if !addr.ip().is_loopback() && token.is_none_or(str::is_empty) {
        return Err(BindError::Open { addr });
    }
    let since = Instant::now();
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(|source| BindError::Io { addr, source })?;
                return Ok(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if since.elapsed() >= patience {
                    return Err(BindError::Taken { addr });
                }
                std::thread::sleep(AGAIN);
            }
            Err(source) => return Err(BindError::Io { addr, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn an_address_open_to_a_network_needs_a_token() {
        let open: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        assert!(matches!(bind(open, None), Err(BindError::Open { .. })));
        assert!(matches!(bind(open, Some("")), Err(BindError::Open { .. })));
        assert!(bind(open, Some("secret")).is_ok());
        assert!(bind(LOOPBACK, None).is_ok());
    }

    #[test]
    fn a_port_that_is_freed_in_time_is_taken_over() {
        let old = TcpListener::bind(LOOPBACK).expect("bind");
        let addr = old.local_addr().expect("an address");
        let patience = Duration::from_millis(1);
        assert!(matches!(bind_within(addr, None, patience), Err(BindError::Taken { .. })));
        let waiting = std::thread::spawn(move || bind_within(addr, None, Duration::from_secs(60)));
        drop(old);
        waiting.join().expect("no panic").expect("the port is free now");
    }
}
