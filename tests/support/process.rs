//! Processes, ports and waiting. The one place where a test waits: for a condition, with a deadline.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Looks until the condition gives a value. Fails at the deadline with what it saw last.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= deadline => {
                panic!("waited {} s for: {what}; seen last: {seen}", limit.as_secs_f32())
            }
            Err(_) => thread::sleep(GLANCE),
        }
    }
}

/// A free port of the loopback that no outgoing connection will take: below the ports the system gives out itself.
pub fn free_port() -> u16 {
    const FIRST: u64 = 20_000;
    const PORTS: u64 = 12_000;
    static START: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Where it starts differs between test processes that run at the same time.
    let start = START.get_or_init(|| RandomState::new().hash_one(std::process::id()) % PORTS);
    for _ in 0..PORTS {
        let port = (FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + PORTS);
}

/// Sends a signal, `INT` or `TERM` or another of kill(1), to a process that this test started.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("/bin/sh").args(["-c", &format!("kill -{name} {}", child.id())]).status();
    assert!(status.expect("start /bin/sh").success(), "kill -{name} {} failed", child.id());
}

/// Waits for a process to end by itself.
#[track_caller]
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> ExitStatus {
    let pid = child.id();
    wait_until(&format!("process {pid} to end"), limit, || {
        child.try_wait().expect("ask for the process").ok_or_else(|| "it runs".to_owned())
    })
}

/// A number of `/proc/PID/status` in kB, such as `VmRSS` or `VmHWM`.
pub fn memory_kb(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read /proc/PID/status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {field} of process {pid}"))
}

/// CPU seconds that the process has used, of all its threads.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read /proc/PID/stat");
    // The name, in parentheses, may hold anything; utime and stime are the 14th and 15th field (proc(5)).
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / 100.0
}
