//! The one reading of the wall clock, for timestamps in records and answers. Decisions take `now` as a value.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, milliseconds since the Unix epoch; 0 for a clock that stands before it.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
