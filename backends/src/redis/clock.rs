//! What the client knows of the server's clock.
//!
//! A claim is one `SET … NX`, which can't ask for the time: its fencing token is in the value that the client sends. So the
//! client reads the server's clock when it connects, and again every now and then beside other commands, and counts on
//! from there by its own monotonic clock. A reading was true before it arrived, so what is counted on from it is *at most*
//! the server's time, and behind it by no more than the reading took to arrive.
//!
//! That is enough for tokens that never go back. A claim that meets a value takes a token above that value's. A claim that
//! meets nothing follows one whose key has vanished, and a key vanishes when the server's clock has passed its claim's
//! time by its whole life. A life that is shorter than a reading takes to arrive (an outcome kept for a few milliseconds)
//! is the one exception.
//!
//! A server that takes another's place has a clock of its own, which may be behind. Redis keeps the point in time at which
//! a key expires, so the clock that a key is measured by is the new server's. Behind sentinels, and in a cluster, where the
//! primaries' clocks differ and a slot may move, the highest clock that was ever read gives the tokens. How long a key has
//! to live until the clock has passed its token is counted from the last reading instead, because other clients may know
//! no higher clock than that.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{RedisResult, Value};

/// A reading this old is to be refreshed.
const STALE: Duration = Duration::from_secs(10);

/// The server's clock as one arbiter knows it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    readings: Mutex<Readings>,
}

#[derive(Debug, Default)]
struct Readings {
    last: Option<Reading>,
    /// The last one, or what an earlier one would be by now if that is later.
    highest: Option<Reading>,
}

/// Points in time since 1970, each at most what the clock shows; zero before the first reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Now {
    /// In microseconds, by the highest clock: what a fencing token is made of.
    pub(super) micros: u64,
    /// In milliseconds, by the last reading.
    pub(super) last_millis: u64,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Since 1970.
    time: Duration,
    at: Instant,
}

impl Reading {
    fn now(self) -> Duration {
        self.time + self.at.elapsed()
    }
}

impl Clock {
    /// The time by the server's clock, or a little less.
    pub(super) fn now(&self) -> Now {
        let readings = self.readings.lock();
        let now = |reading: Option<Reading>| reading.map_or(Duration::ZERO, Reading::now);
        Now {
            micros: u64::try_from(now(readings.highest).as_micros()).unwrap_or(u64::MAX),
            last_millis: u64::try_from(now(readings.last).as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.readings.lock().last.is_some()
    }

    /// Whether a new reading is due; from now on it counts as under way.
    pub(super) fn take_due(&self) -> bool {
        let mut readings = self.readings.lock();
        let is_due = readings.last.is_none_or(|reading| reading.at.elapsed() >= STALE);
        if is_due && let Some(reading) = readings.last.as_mut() {
            *reading = Reading { time: reading.now(), at: Instant::now() };
        }
        is_due
    }

    /// The clock of the one server that is spoken to.
    pub(super) fn set(&self, time: Duration) {
        let reading = Some(Reading { time, at: Instant::now() });
        *self.readings.lock() = Readings { last: reading, highest: reading };
    }

    /// The clock of one of several servers.
    pub(super) fn raise(&self, time: Duration) {
        let mut readings = self.readings.lock();
        let known = readings.highest.map_or(Duration::ZERO, Reading::now);
        let at = Instant::now();
        *readings = Readings { last: Some(Reading { time, at }), highest: Some(Reading { time: time.max(known), at }) };
    }
}

/// The answer to `TIME`: seconds and microseconds.
pub(super) fn read_time(answer: Value) -> RedisResult<Duration> {
    let (seconds, micros): (u64, u64) = redis::from_redis_value(answer.extract_error()?)?;
    Ok(Duration::from_secs(seconds) + Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn e25_the_clock_goes_on_from_its_reading() {
        let clock = Clock::default();
        assert_eq!(clock.now(), Now::default());
        assert!(!clock.is_read() && clock.take_due());
        clock.set(DAY);
        let first = clock.now();
        assert!(first.micros >= 86_400_000_000 && clock.is_read() && !clock.take_due());
        assert!(first.last_millis == 86_400_000, "{first:?}");
        while clock.now().micros == first.micros {
            std::hint::spin_loop();
        }
        // Of several servers the highest clock numbers the claims, and the last reading measures lives.
        clock.raise(DAY / 2);
        assert!(clock.now().micros > first.micros);
        assert!(clock.now().last_millis < first.last_millis);
        clock.raise(2 * DAY);
        assert!(clock.now().last_millis >= 2 * first.last_millis);
        // One server's clock may be set back. What it has a token of stays until the clock has passed that token.
        clock.set(DAY / 2);
        assert!(clock.now().micros < first.micros);
    }

    #[test]
    fn a_time_is_seconds_and_microseconds() {
        let text = |text: &str| Value::BulkString(text.into());
        let time = read_time(Value::Array(vec![text("1700000000"), text("17")])).unwrap();
        assert_eq!(time, Duration::from_micros(1_700_000_000_000_017));
        assert!(read_time(Value::Okay).is_err());
    }
}
