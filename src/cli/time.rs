//! Points in time as people write them. Must not read the clock: now is passed in.

use crate::config::parse_duration;
use crate::words::Timestamp;

use super::error::CliError;

/// RFC 3339, or a duration before now: `2026-11-21T09:00:00Z`, `2h`, `1d 6h`.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, CliError> {
    if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
        return Ok(Timestamp::from_millis(time.timestamp_millis()));
    }
    match parse_duration(text.trim().trim_end_matches(" ago")) {
        Ok(ago) => Ok(now.before(ago)),
        Err(_) => Err(CliError::usage(format!(
            "{text:?} is not a time; write it like 2026-11-21T09:00:00Z (RFC 3339), or as a duration ago like 2h"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        for (text, millis) in [
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
            ("2h", 1_700_000_000_000 - 7_200_000),
            ("1m 30s ago", 1_700_000_000_000 - 90_000),
        ] {
            assert_eq!(parse(text, now).expect(text).millis(), millis, "{text}");
        }
        for bad in ["", "yesterday", "2023-11-14", "12"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
