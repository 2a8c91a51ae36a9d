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
//! A server that takes another's place has a clock of its own; the times to live of its keys are measured by that clock,
//! and so are the tokens, since the new connection begins with a new reading. In a cluster the primaries' clocks differ,
//! and a slot may move: the highest of them counts, and what is known never goes back.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{RedisResult, Value};

/// A reading this old is to be refreshed.
const STALE: Duration = Duration::from_secs(10);

/// The server's clock as one arbiter knows it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    reading: Mutex<Option<Reading>>,
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
    /// Microseconds since 1970 by the server's clock, or a little less; zero before the first reading.
    pub(super) fn micros(&self) -> u64 {
        let now = self.reading.lock().map_or(Duration::ZERO, Reading::now);
        u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn is_read(&self) -> bool {
        self.reading.lock().is_some()
    }

    /// Whether a new reading is due; from now on it counts as under way.
    pub(super) fn take_due(&self) -> bool {
        let mut reading = self.reading.lock();
        let is_due = reading.is_none_or(|reading| reading.at.elapsed() >= STALE);
        if is_due && let Some(reading) = reading.as_mut() {
            *reading = Reading { time: reading.now(), at: Instant::now() };
        }
        is_due
    }

    /// The clock of the one server that is spoken to.
    pub(super) fn set(&self, time: Duration) {
        *self.reading.lock() = Some(Reading { time, at: Instant::now() });
    }

    /// The clock of one of several servers.
    pub(super) fn raise(&self, time: Duration) {
        let mut reading = self.reading.lock();
        let known = reading.map_or(Duration::ZERO, Reading::now);
        *reading = Some(Reading { time: time.max(known), at: Instant::now() });
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
        assert_eq!(clock.micros(), 0);
        assert!(!clock.is_read() && clock.take_due());
        clock.set(DAY);
        let first = clock.micros();
        assert!(first >= 86_400_000_000 && clock.is_read() && !clock.take_due());
        while clock.micros() == first {
            std::hint::spin_loop();
        }
        // One server's clock may be set back, and its keys' times with it. Of several the highest counts.
        clock.raise(DAY / 2);
        assert!(clock.micros() > first);
        clock.set(DAY / 2);
        assert!(clock.micros() < first);
    }

    #[test]
    fn a_time_is_seconds_and_microseconds() {
        let text = |text: &str| Value::BulkString(text.into());
        let time = read_time(Value::Array(vec![text("1700000000"), text("17")])).unwrap();
        assert_eq!(time, Duration::from_micros(1_700_000_000_000_017));
        assert!(read_time(Value::Okay).is_err());
    }
}
