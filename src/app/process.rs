//! What the process asks of its operating system and of the C library: limits and blocks before anything else, and what it has
//! taken so far.

use std::fs;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use super::AppError;
use crate::metrics::Process;

/// The unit of times in `/proc`, whatever the kernel's own clock is: USER_HZ of proc(5) on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Lets nothing of the memory, which has passwords and keys, get into a core file or to another program of the same user:
/// neither by ptrace nor by `/proc`, where the environment is. A limit on core files would not hold for those that the system
/// hands to a program of its own. To be called before there is anything to keep.
pub fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!(%error, "keep the memory out of core files");
    }
}

/// Files that a process must be able to open: twice what the log, the mirror, the source and a store take of them, and room for those
/// who search. With fewer it would start, and then lack one for its source or for whoever asks.
const FILES_MIN: u64 = 128;

/// Connections are files: the soft limit is often 1,024, and every process may raise its own to the hard one.
/// To be called before there are threads: what starts them asks for files, and not everything that does can be told that there is none.
///
/// # Errors
/// The hard limit, where it is below [`FILES_MIN`].
pub fn raise_file_limit() -> Result<(), AppError> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "raise the limit of open files");
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < FILES_MIN => Err(AppError::Files { limit, wanted: FILES_MIN }),
        _ => Ok(()),
    }
}

/// Lets the allocator use blocks of up to 8 MiB again. sled takes a fresh one of 2 MiB for every 2 MiB of its log, and glibc
/// would map and unmap each: of its own accord it keeps blocks of a size that was freed before, but these are aligned,
/// ask for a little more than they are, and so never seem to have been. The kernel then clears 512 pages for each, which
/// is half the time of writing.
pub(super) fn keep_large_blocks() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 8 << 20), (libc::M_TRIM_THRESHOLD, 32 << 20)] {
        // SAFETY: takes two integers; other threads may allocate meanwhile.
        if unsafe { libc::mallopt(parameter, bytes) } == 0 {
            tracing::warn!(parameter, bytes, "set the allocator");
        }
    }
}

/// Gives the system back what is allocated for nothing any more: of its own accord the allocator does that only at the end of
/// what it has. Takes some milliseconds, in which others wait to allocate.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What the process has taken so far; it began at `started`, seconds since the Unix epoch. What `/proc` does not say is 0.
pub(super) fn taken(started: f64) -> Process {
    let text = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = text("status");
    Process {
        cpu_seconds: cpu_seconds(&text("stat")),
        resident_bytes: field(&status, "VmRSS:") * 1024,
        open_fds: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        max_fds: getrlimit(Resource::Nofile).current.unwrap_or(0),
        threads: field(&status, "Threads:"),
        started,
    }
}

/// User and system time, the 14th and 15th field of `/proc/self/stat`; the second, a name in parentheses, may hold anything.
fn cpu_seconds(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS_PER_SECOND
}

/// The number behind a name in `/proc/self/status`.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_finds_itself() {
        let began = std::time::Instant::now();
        while cpu_seconds(&fs::read_to_string("/proc/self/stat").expect("readable")) == 0.0 {
            assert!(began.elapsed().as_secs() < 20, "no time on a processor");
        }
        let taken = taken(7.0);
        assert!(taken.cpu_seconds > 0.0 && taken.resident_bytes > 1 << 20, "{taken:?}");
        assert!(taken.threads >= 1 && taken.open_fds >= 3 && taken.max_fds >= taken.open_fds, "{taken:?}");
        assert_eq!(cpu_seconds("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0"), 2.0);
    }
}
