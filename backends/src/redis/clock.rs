//! What an arbiter knows about the server's clock.
//!
//! A claim is a single `SET … NX`, which can't ask for the time: the client sends the fencing token as part of the
//! value. So the client reads the server's clock when it connects, and again from time to time, along with other
//! commands. In between, it counts on with its own monotonic clock. A reading is already in the past when it arrives.
//! The computed time is therefore *at most* the server's time, and behind it by no more than the time that the reading
//! took to arrive.
//!
//! That is enough for fencing tokens that never go back. A claim that finds a value takes a higher token than that
//! value's. A claim that finds nothing follows a claim whose key has expired, and a key expires only when the server's
//! clock has passed the claim's time by the key's whole life. The one exception is a life shorter than the time that a
//! reading takes to arrive (an outcome kept for a few milliseconds).
//!
//! A server that takes over from another has its own clock, which may be behind. Redis stores the time at which a key
//! expires, so the new server's clock decides when a key ends. The primaries of a cluster have different clocks, and a
//! slot may move between them. So in a cluster and behind sentinels, the highest clock reading so far determines the
//! tokens. A key must live until the clock has passed its token. That time is counted from the last reading instead,
//! because other clients may not have seen a higher clock than that.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{RedisResult, Value};

/// The age after which a reading must be refreshed.
const STALE: Duration = Duration::from_secs(10);

/// The server's clock as one arbiter knows it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    readings: Mutex<Readings>,
}

#[derive(Debug, Default)]
struct Readings {
    last: Option<Reading>,
    /// The last reading, or the current value of an earlier reading if that is later.
    highest: Option<Reading>,
}

/// Points in time since 1970, each no later than the server's clock. Both are zero before the first reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Now {
    /// In microseconds, by the highest clock. Fencing tokens come from this.
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
    /// Returns the time of the server's clock, or slightly less.
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

    /// Returns whether a new reading is due. If so, the reading counts as in progress from now on.
    pub(super) fn take_due(&self) -> bool {
        let mut readings = self.readings.lock();
        let is_due = readings.last.is_none_or(|reading| reading.at.elapsed() >= STALE);
        if is_due && let Some(reading) = readings.last.as_mut() {
            *reading = Reading { time: reading.now(), at: Instant::now() };
        }
        is_due
    }

    /// Sets the clock of the only server.
    pub(super) fn set(&self, time: Duration) {
        let reading = Some(Reading { time, at: Instant::now() });
        *self.readings.lock() = Readings { last: reading, highest: reading };
    }

    /// Records a clock reading of one of several servers.
    pub(super) fn raise(&self, time: Duration) {
        let mut readings = self.readings.lock();
        let known = readings.highest.map_or(Duration::ZERO, Reading::now);
        let at = Instant::now();
        *readings = Readings { last: Some(Reading { time, at }), highest: Some(Reading { time: time.max(known), at }) };
    }
}

/// Parses the answer to `TIME`: seconds and microseconds.
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
        // With several servers, the highest clock numbers the claims, and the last reading measures lives.
        clock.raise(DAY / 2);
        assert!(clock.now().micros > first.micros);
        assert!(clock.now().last_millis < first.last_millis);
        clock.raise(2 * DAY);
        assert!(clock.now().last_millis >= 2 * first.last_millis);
        // A single server's clock may be set back. A key that holds a token stays until the clock has passed that
        // token.
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
