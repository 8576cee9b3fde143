//! Durations, sizes and addresses as the configuration writes them. Must not know
//! keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A duration: `10s`, `1h 30m`, `30d`; `0` and `0s` are none.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text.trim()).map_err(|_| {
        format!("{text:?} is not a duration; write it like \"500ms\", \"10s\", \"24h\", \"30d\"")
    })
}

/// A size in bytes: `64MB` (10^6), `64MiB` (2^20), `4096`.
pub fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size; write it like \"512KB\", \"64MB\", \"10GiB\"");
    let text = text.trim();
    let digits = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(bad()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(bad);
    }
    let bytes = number.parse::<f64>().map_err(|_| bad())? * scale as f64;
    // Beyond this a double no longer counts single bytes.
    if bytes < 9e15 { Ok(bytes as u64) } else { Err(bad()) }
}

/// An address to listen on: `127.0.0.1:20202`, `[::1]:20202`, `localhost:20202`,
/// and `:20202` for every interface.
pub fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    let port = |port: &str| port.parse::<u16>().ok();
    if let Some(port) = text.strip_prefix(':').and_then(port) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(port) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        format!("{text:?} is not an address to listen on; write it like \"127.0.0.1:20202\" or \":20202\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(duration("0"), duration("0s"));
        for bad in ["", "10", "ten", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for (text, bytes) in
            [("4096", 4096), ("64MB", 64_000_000), ("1.5 GiB", 3 << 29), ("0", 0), ("2kib", 2048)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MB", "1XB", "-1", "99999999TB", "1.2.3", "1e400"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_to_listen_on_need_no_name_service() {
        assert_eq!(listen_addr(":20202").map(|addr| addr.to_string()), Ok("0.0.0.0:20202".to_owned()));
        assert!(listen_addr("localhost:1").is_ok_and(|addr| addr.ip().is_loopback()));
        assert!(listen_addr("[::1]:1").is_ok());
        for bad in ["", "20202", "example.com:80", "127.0.0.1", ":99999"] {
            assert!(listen_addr(bad).is_err(), "{bad}");
        }
    }
}
