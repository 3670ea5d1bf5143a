//! The daemon's own process, as the kernel sees it.

use procfs::{
    ProcError, WithCurrentSystemInfo as _,
    process::{LimitValue, Process},
};
use serde::Serialize;

/// What a scrape says of the process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ProcessView {
    /// User and system time.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    /// File descriptors.
    pub open_files: u64,
    /// The soft limit; `u64::MAX` where there is none.
    pub max_files: u64,
    /// Seconds since 1970.
    pub started: f64,
}

/// Reads /proc/self.
pub(super) fn read() -> Result<ProcessView, ProcError> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    Ok(ProcessView {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        open_files: process.fd_count()? as u64,
        max_files: match process.limits()?.max_open_files.soft_limit {
            LimitValue::Value(limit) => limit,
            LimitValue::Unlimited => u64::MAX,
        },
        started: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    #[test]
    fn the_numbers_are_of_this_process() {
        let before = read().unwrap();
        let files: Vec<std::fs::File> =
            (0..20).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        let filled = std::hint::black_box(vec![1_u8; 64 << 20]);
        let begun = Instant::now();
        let mut work = 0_u64;
        while begun.elapsed().as_millis() < 200 {
            work = std::hint::black_box(work + 1);
        }
        let after = read().unwrap();
        // Other tests of this process open and close files meanwhile.
        assert!(after.open_files + 10 >= before.open_files + files.len() as u64, "{before:?} {after:?}");
        assert!(after.max_files > 20);
        assert!(after.resident_bytes >= filled.len() as u64 / 2, "{after:?}");
        assert!(after.virtual_bytes > after.resident_bytes);
        assert!(after.cpu_seconds > before.cpu_seconds);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(after.started > now - 86_400.0 && after.started <= now + 2.0, "{after:?}, now {now}");
        drop((files, filled));
    }
}
