//! How much the query server takes from one client and from all together. Sizes, numbers, deadlines; no code.

use std::time::Duration;

/// Largest body of a request, in bytes: the longest query in four-byte characters, each escaped, with its filters.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest path with query string, in bytes: the longest query in four-byte characters, percent-encoded, is 48 KiB.
pub(super) const URI_BYTES_MAX: usize = 56 * 1024;
/// All header lines of a request, in bytes: four times what browsers and proxies send.
pub(super) const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Where hyper itself stops reading a head, in bytes: above the two limits before, which are answered in words.
pub(super) const HEAD_BYTES_MAX: usize = 80 * 1024;
/// What a client may still send after a refusal, in bytes, so that it gets to read the answer.
pub(super) const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many sockets are closed at once when the process has no file descriptor left.
pub(super) const EVICTED_AT_ONCE: usize = 64;

/// Numbers and deadlines of the query server. The default is what it runs with; tests shorten it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. When the last place is taken, the connection that has been silent longest gives way, so that
    /// whoever comes next finds one.
    pub connections: usize,
    /// A TLS handshake.
    pub handshake: Duration,
    /// From a connection's opening, or a request's first byte, to the end of the request's head.
    pub head: Duration,
    /// From an answer to the next request's first byte.
    pub idle: Duration,
    /// From the end of a request's head to the end of its body.
    pub body: Duration,
    /// For how long a client may take nothing of its answer.
    pub write_stall: Duration,
    /// For how long a refused client may go on sending before the connection is cut.
    pub linger: Duration,
    /// Searches made at once.
    pub searches: usize,
    /// Searches that wait for a place; one more is refused.
    pub searches_queued: usize,
    /// For how long a search waits for a place.
    pub queue_wait: Duration,
    /// After the stop signal: for how long a silent connection may still bring a last request.
    pub drain_idle: Duration,
    /// After the stop signal: when connections that are still open are cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // Twice what a large installation's pools hold; at 100 kB of the slowest client's data, 400 MB at worst.
            connections: 4096,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            // Above the 60 s after which common load balancers drop an idle connection, so that they close first.
            idle: Duration::from_secs(75),
            body: Duration::from_secs(10),
            write_stall: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            // A search is mostly computing: more at once than a few a core only makes each slower.
            searches: 16,
            // What 16 places work off in about `queue_wait`.
            searches_queued: 64,
            queue_wait: Duration::from_millis(100),
            drain_idle: Duration::from_millis(500),
            drain: Duration::from_secs(10),
        }
    }
}
