//! What a process uses, as Linux tells it under `/proc`.

use std::{fs, time::Duration};

use anyhow::Context;

/// A process that is watched.
#[derive(Clone, Copy, Debug)]
pub struct Process(u32);

impl Process {
    /// The process of this number.
    pub fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// This process.
    pub fn current() -> Self {
        Self(std::process::id())
    }

    /// Time on a CPU so far, in user space and in the kernel.
    ///
    /// The larger of two sources: `stat` counts threads that have ended too, but in steps of 10 ms;
    /// `schedstat` of each thread is exact, where the kernel keeps it.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        const TICK: Duration = Duration::from_millis(10);
        let path = format!("/proc/{}/stat", self.0);
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The second field is a name in parentheses and may hold blanks.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks: u32 = fields.split(' ').skip(11).take(2).map_while(|ticks| ticks.parse::<u32>().ok()).sum();
        Ok((TICK * ticks).max(self.scheduled().unwrap_or_default()))
    }

    fn scheduled(self) -> Option<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0)).ok()? {
            // A thread may end while it is looked at.
            let Ok(schedstat) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            nanos += schedstat.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(nanos))
    }

    /// Bytes of memory that are resident.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resident_bytes(self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.0);
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Ok(1024 * kib.unwrap_or(0_u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_memory() {
        let before = Process::current().cpu().expect("this process is there");
        let mut memory = vec![0_u8; 8 << 20];
        for round in 0..50 {
            memory.iter_mut().for_each(|byte| *byte = byte.wrapping_add(round));
        }
        std::hint::black_box(&memory);
        assert!(before < Process::current().cpu().expect("this process is there"));
        assert!(8 << 20 < Process::current().resident_bytes().expect("this process is there"));
    }
}
