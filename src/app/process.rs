//! What the process asks of its operating system and of the C library, before anything else.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections are files: the soft limit is often 1,024, and every process may raise its own to the hard one.
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "raise the limit of open files");
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
