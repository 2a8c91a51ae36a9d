//! The store's clock. Every process must agree on whether a lease has lapsed.
//!
//! A database server has a clock of its own. SQLite is a library, and the wall clocks of two processes may differ by an
//! hour: one was set between two readings, or a process runs with another clock (faketime, a container's settings). So
//! the file gets its own clock: the machine's `CLOCK_BOOTTIME`, read from the kernel and not through libc, without the
//! shift of a time namespace. All processes of the machine share it, nobody can set it, and it continues while the
//! machine sleeps.
//!
//! `CLOCK_BOOTTIME` restarts with every boot. So the file keeps an offset to it for the boot in which it was last
//! opened. The first process that opens the file after a boot chooses a new offset: the store's time continues from the
//! wall clock. If the wall clock is behind the latest time that the file can have seen, the store's time continues from
//! past that time. No process reads the wall clock again until the next boot.
//!
//! Systems other than Linux, and a Linux without `/proc`, only have the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use diesel::prelude::*;
use oncekey::record::StoreTime;

use super::boot::{since_boot_ms, this_boot};
use super::schema::oncekey_clock::dsl::{boot_id, id, latest_ms, offset_ms, oncekey_clock};

/// How often a writer notes the store's time in the file. The latest time that the file has seen may be later than the
/// noted time by up to this much.
const NOTED_EVERY_MS: i64 = 10_000;

/// The store's clock, anchored to one file.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// Offset from the time since boot to the store's time; `None` where there is only the wall clock.
    offset_ms: Option<i64>,
    noted_ms: i64,
}

/// The readings of the machine's clocks at one moment.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    boot_id: String,
    boot_ms: i64,
    wall_ms: i64,
}

/// Why a file's clock can't be read.
#[derive(Debug)]
pub(super) enum NotAnchored {
    /// Other processes base the file's time on the time since boot, and this process can't identify the boot.
    NoBootId,
    Sqlite(diesel::result::Error),
}

impl From<diesel::result::Error> for NotAnchored {
    fn from(error: diesel::result::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Machine {
    pub(super) fn now() -> Self {
        Self { boot_id: this_boot(), boot_ms: since_boot_ms(), wall_ms: wall_ms() }
    }
}

impl Clock {
    /// Reads the file's anchor, or sets a new one after a boot. Call it inside a write transaction. It always writes,
    /// so that it detects a file that can't be written to.
    ///
    /// # Errors
    /// [`NotAnchored::NoBootId`] if the file's time is based on the time since boot and this process can't read the
    /// boot's name. With the wall clock, it would see leases lapse that other processes still hold, and its anchor
    /// would move theirs.
    pub(super) fn anchor(connection: &mut SqliteConnection, machine: &Machine) -> Result<Self, NotAnchored> {
        let kept: Option<(String, i64, i64)> =
            oncekey_clock.select((boot_id, offset_ms, latest_ms)).first(connection).optional()?;
        let (offset, latest) = match kept {
            Some((boot, offset, latest)) if boot == machine.boot_id && has_monotonic_clock(&boot) => {
                (offset, latest.max(machine.boot_ms.saturating_add(offset)))
            }
            Some((boot, ..)) if has_monotonic_clock(&boot) && !has_monotonic_clock(&machine.boot_id) => {
                return Err(NotAnchored::NoBootId);
            }
            Some((boot, _, latest)) => {
                // A process may have made claims after the latest note, and no fencing token may go back.
                let unnoted = if has_monotonic_clock(&boot) { NOTED_EVERY_MS } else { 0 };
                let now = latest.saturating_add(unnoted).max(machine.wall_ms);
                (now.saturating_sub(machine.boot_ms), now)
            }
            None => (machine.wall_ms.saturating_sub(machine.boot_ms), machine.wall_ms),
        };
        let row = (id.eq(1), boot_id.eq(&machine.boot_id), offset_ms.eq(offset), latest_ms.eq(latest));
        diesel::replace_into(oncekey_clock).values(row).execute(connection)?;
        Ok(Self { offset_ms: has_monotonic_clock(&machine.boot_id).then_some(offset), noted_ms: latest })
    }

    /// Returns the store's time.
    pub(super) fn now(&self) -> StoreTime {
        StoreTime::from_millis(u64::try_from(self.now_ms()).unwrap_or(0))
    }

    fn now_ms(&self) -> i64 {
        let offset = self.offset_ms.filter(|_| !oncekey::__planted!(LeaseByTheWallClock));
        offset.map_or_else(wall_ms, |offset| since_boot_ms().saturating_add(offset))
    }

    /// Notes the store's time in the file from time to time. Call it inside a write transaction.
    pub(super) fn note(&mut self, connection: &mut SqliteConnection) -> QueryResult<()> {
        let now = self.now_ms();
        if now.saturating_sub(self.noted_ms) < NOTED_EVERY_MS {
            return Ok(());
        }
        diesel::update(oncekey_clock.find(1).filter(latest_ms.lt(now))).set(latest_ms.eq(now)).execute(connection)?;
        self.noted_ms = now;
        Ok(())
    }
}

/// The time since boot is usable only with the name of the boot.
fn has_monotonic_clock(boot: &str) -> bool {
    !boot.is_empty()
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::migration;

    fn fresh() -> SqliteConnection {
        let mut connection = SqliteConnection::establish(":memory:").unwrap();
        migration::bring_up_to_date(&mut connection, true).unwrap();
        connection
    }

    fn machine(boot: &str, boot_ms: i64, wall_ms: i64) -> Machine {
        Machine { boot_id: boot.into(), boot_ms, wall_ms }
    }

    #[test]
    fn e17_an_hour_of_wall_clock_skew_changes_nothing() {
        let mut file = fresh();
        let one = Clock::anchor(&mut file, &machine("a", 5_000, 1_000_000)).unwrap();
        let ahead = Clock::anchor(&mut file, &machine("a", 6_000, 1_001_000 + 3_600_000)).unwrap();
        let behind = Clock::anchor(&mut file, &machine("a", 7_000, 2_000)).unwrap();
        assert_eq!((one.offset_ms, ahead.offset_ms, behind.offset_ms), (Some(995_000), Some(995_000), Some(995_000)));
    }

    #[test]
    fn e17_time_goes_on_over_a_boot() {
        let mut file = fresh();
        Clock::anchor(&mut file, &machine("a", 5_000, 1_000_000)).unwrap();
        let rebooted = Clock::anchor(&mut file, &machine("b", 100, 1_060_000)).unwrap();
        assert_eq!(rebooted.offset_ms, Some(1_059_900));
        // A machine without a clock battery restarts its wall clock in 1970.
        let set_back = Clock::anchor(&mut file, &machine("c", 100, 0)).unwrap();
        assert_eq!(set_back.offset_ms, Some(1_059_900 + NOTED_EVERY_MS));
    }

    /// Claims shortly before a power cut are later than the latest note, and so are their tokens.
    #[test]
    fn e25_time_goes_on_past_what_was_noted_before_a_boot() {
        let mut file = fresh();
        let before = Clock::anchor(&mut file, &machine("a", 5_000, 1_000_000)).unwrap();
        let noted: i64 = oncekey_clock.select(latest_ms).first(&mut file).unwrap();
        let last_seen = noted + NOTED_EVERY_MS - 1;
        assert_eq!(last_seen - before.offset_ms.unwrap(), 5_000 + NOTED_EVERY_MS - 1, "the machine's time since boot");
        for wall_ms in [0, noted, last_seen] {
            let mut file = fresh();
            Clock::anchor(&mut file, &machine("a", 5_000, 1_000_000)).unwrap();
            let after = Clock::anchor(&mut file, &machine("b", 100, wall_ms)).unwrap();
            assert!(100 + after.offset_ms.unwrap() > last_seen, "with the wall clock at {wall_ms}");
        }
    }

    /// A process without /proc does not replace the file's clock for the others.
    #[test]
    fn e17_a_process_that_knows_no_boot_does_not_anchor_a_file_that_has_one() {
        let mut file = fresh();
        let first = Clock::anchor(&mut file, &machine("a", 5_000, 1_000_000)).unwrap();
        let blind = Clock::anchor(&mut file, &machine("", 6_000, 9_000_000));
        assert!(matches!(blind, Err(NotAnchored::NoBootId)), "{blind:?}");
        let next = Clock::anchor(&mut file, &machine("a", 7_000, 1_000_000)).unwrap();
        assert_eq!(next.offset_ms, first.offset_ms);
        // Where no process knows the boot, all of them use the wall clock.
        let mut file = fresh();
        for wall_ms in [1_000, 2_000] {
            assert_eq!(Clock::anchor(&mut file, &machine("", 0, wall_ms)).unwrap().offset_ms, None);
        }
    }

    #[test]
    fn the_latest_time_is_noted_now_and_then() {
        let mut file = fresh();
        let mut clock = Clock::anchor(&mut file, &Machine::now()).unwrap();
        let latest = |file: &mut SqliteConnection| oncekey_clock.select(latest_ms).first::<i64>(file).unwrap();
        let at_open = latest(&mut file);
        clock.note(&mut file).unwrap();
        assert_eq!(latest(&mut file), at_open);
        clock.noted_ms -= NOTED_EVERY_MS;
        std::thread::sleep(std::time::Duration::from_millis(2));
        clock.note(&mut file).unwrap();
        assert!(latest(&mut file) > at_open);
    }
}
