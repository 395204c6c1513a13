//! vecsync keeps a semantic search index in step with a PostgreSQL table. The rooms, in the order data flows.

pub mod config;
pub mod event;

pub mod capture;
pub mod topic;

pub mod embed;
pub mod index;
pub mod serve;

pub mod app;
pub mod archive;
pub mod client;
pub mod commands;
pub mod control;
pub mod freshness;

pub mod clock;
pub mod logging;
pub mod metrics;
pub mod progress_bar;
pub mod remedy;
pub mod requests;
pub mod retry;
pub mod shutdown;
