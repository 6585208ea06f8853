//! The CPU time and memory of a process, from `/proc`.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

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

/// Time on a CPU of this process so far, exactly: what other processes are asked for comes in steps.
pub fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time on a CPU of this thread so far.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Process {
    /// Looks at its memory every 20 ms from now on.
    pub fn watch_resident_bytes(self) -> Peak {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watching = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(self.resident_bytes().unwrap_or(0));
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        Peak { stop, watching }
    }
}

/// The most memory that a process had, while it was watched.
#[derive(Debug)]
pub struct Peak {
    stop: Arc<AtomicBool>,
    watching: JoinHandle<u64>,
}

impl Peak {
    /// The most bytes that were resident.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.watching.join().expect("it does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_memory() {
        let (before, exactly) = (Process::current().cpu().expect("this process is there"), own_cpu());
        let peak = Process::current().watch_resident_bytes();
        let mut memory = vec![0_u8; 8 << 20];
        for round in 0..50 {
            memory.iter_mut().for_each(|byte| *byte = byte.wrapping_add(round));
        }
        std::hint::black_box(&memory);
        assert!(exactly < own_cpu());
        assert!(before < Process::current().cpu().expect("this process is there"));
        assert!(8 << 20 < Process::current().resident_bytes().expect("this process is there"));
        assert!(0 < peak.stop());
    }
}
