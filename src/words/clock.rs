//! Time, passed in: wall time in milliseconds for people, and a monotonic clock
//! that counts suspended time for deadlines. Must not be read from anywhere else.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Wall time: milliseconds since the Unix epoch, as in an LTX header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// This many milliseconds since the Unix epoch.
    pub fn from_millis(millis: i64) -> Timestamp {
        Timestamp(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> i64 {
        self.0
    }

    /// This much earlier; saturates.
    #[must_use]
    pub fn before(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_millis(self.0) {
            Some(time) => write!(f, "{}", time.format("%Y-%m-%dT%H:%M:%S%.3fZ")),
            None => write!(f, "{} ms since 1970", self.0),
        }
    }
}

/// A clock.
pub trait Clock: Send + Sync {
    /// Wall time. It may jump; never compare two machines' wall clocks.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment. Never goes back, and counts the time that the
    /// machine was suspended.
    fn elapsed(&self) -> Duration;
}

/// The machine's clocks: CLOCK_REALTIME and CLOCK_BOOTTIME (clock_gettime(2)).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(chrono::Utc::now().timestamp_millis())
    }

    fn elapsed(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<(i64, Duration)>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Timestamp) -> ManualClock {
        ManualClock(Mutex::new((now.millis(), Duration::ZERO)))
    }

    /// Lets time pass, on both clocks.
    pub fn advance(&self, by: Duration) {
        let mut time = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        time.0 = time.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        time.1 = time.1.saturating_add(by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0)
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }
}
