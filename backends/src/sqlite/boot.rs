//! The machine's time since boot, which is the same for all its processes.
//!
//! `CLOCK_BOOTTIME` alone is not the same for all: a time namespace (of a container, or of `unshare -T`) shifts it. The
//! kernel shows the shift in `/proc/self/timens_offsets`, and it can't change once a process is in the namespace.

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::sync::LazyLock;

    /// How far this process's time since boot is ahead of the machine's; `None` where that is unknown.
    static SHIFT_MS: LazyLock<Option<i64>> = LazyLock::new(|| {
        // The offsets file describes the namespace of this process's future children. A process that has just created a
        // namespace is not in it itself.
        let own = fs::read_link("/proc/self/ns/time");
        match own {
            // This kernel has no time namespaces.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(0),
            Err(_) => return None,
            Ok(own) if fs::read_link("/proc/self/ns/time_for_children").ok()? != own => return None,
            Ok(_) => {}
        }
        shift_in(&fs::read_to_string("/proc/self/timens_offsets").ok()?)
    });

    /// Parses lines such as `boottime 3600 0`: seconds and nanoseconds.
    pub(super) fn shift_in(offsets: &str) -> Option<i64> {
        let line = offsets.lines().find(|line| line.trim_start().starts_with("boottime"))?;
        let mut numbers = line.split_whitespace().skip(1).map(str::parse::<i64>);
        let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000))
    }

    /// Returns the boot's name; empty where the name, or the shift of this process's clock, is unknown.
    pub(in crate::sqlite) fn this_boot() -> String {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if SHIFT_MS.is_some() { boot.trim().to_owned() } else { String::new() }
    }

    pub(in crate::sqlite) fn since_boot_ms() -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let own = now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000);
        own.saturating_sub(SHIFT_MS.unwrap_or(0))
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::{since_boot_ms, this_boot};

#[cfg(not(target_os = "linux"))]
pub(super) fn this_boot() -> String {
    String::new()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn since_boot_ms() -> i64 {
    0
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::linux::shift_in;

    #[test]
    fn e17_the_kernels_offsets_are_read() {
        assert_eq!(shift_in("monotonic           0         0\nboottime         3600         0\n"), Some(3_600_000));
        assert_eq!(shift_in("monotonic  5 0\nboottime  -2  500000000\n"), Some(-1_500));
        assert_eq!(shift_in("monotonic 0 0\n"), None);
        assert_eq!(shift_in("boottime x 0\n"), None);
    }
}
