//! The parts of the benchmark, and what they share: figures and percentiles.

pub mod backfill;
pub mod bare;
pub mod capture;
pub mod embed;
pub mod failover;
pub mod finding;
pub mod freshness;
pub mod joins;
pub mod kafka;
pub mod limit;
pub mod qdrant;
pub mod report;
pub mod scan;
pub mod search;
pub mod single;
pub mod soak;
pub mod texts;

use std::time::Duration;

/// Named figures; the unit is at the end of the name.
pub type Figures = Vec<(&'static str, f64)>;

/// The value below which this share of all lies: the smallest that has at least that many at or below it.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

pub fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
