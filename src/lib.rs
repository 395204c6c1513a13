//! vecsync keeps a semantic search index in step with a PostgreSQL table. The rooms, in the order data flows.

pub mod clock;
pub mod config;
pub mod control;
pub mod event;
pub mod freshness;

pub mod capture;
pub mod topic;

pub mod metrics;
pub mod retry;
pub mod shutdown;
