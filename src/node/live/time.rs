//! How old what a replica has is, without comparing the wall clocks of two machines: the
//! quickest message there was is taken to have taken no time.

use std::time::Duration;

use crate::peer::wire::Beat;

/// What one stream says of the primary's clock.
#[derive(Debug, Default)]
pub(super) struct PrimaryTime {
    /// This node's clock minus the primary's, at most.
    ahead: Option<i64>,
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

impl PrimaryTime {
    /// The moment of a beat, which came at `now`, on this node's clock.
    pub fn here(&mut self, beat: &Beat, now: Duration) -> Duration {
        let ahead = millis(now).saturating_sub(millis(beat.at));
        let ahead = self.ahead.map_or(ahead, |known| known.min(ahead));
        self.ahead = Some(ahead);
        let here = millis(beat.at).saturating_add(ahead);
        Duration::from_millis(u64::try_from(here).unwrap_or(0)).min(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Timestamp;

    #[test]
    fn a_message_that_was_long_under_way_is_as_old_as_it_is() {
        let ms = Duration::from_millis;
        let beat = |at| Beat { at: ms(at), wall: Timestamp::default() };
        for start in [0, 1_000_000] {
            let mut time = PrimaryTime::default();
            assert_eq!(time.here(&beat(start + 100), ms(500_000)), ms(500_000));
            assert_eq!(time.here(&beat(start + 1100), ms(503_000)), ms(501_000));
            // A quicker one shows that the first was late, too.
            assert_eq!(time.here(&beat(start + 4100), ms(503_500)), ms(503_500));
            assert_eq!(time.here(&beat(start + 5100), ms(505_000)), ms(504_500));
        }
    }
}
