//! What live tests and benchmarks stand on: real servers, the real binary, waiting, chance. Tests nothing itself.
#![allow(dead_code, reason = "each target uses a part of it")]

pub mod browser;
pub mod connect;
pub mod dice;
pub mod disk;
pub mod faq;
pub mod fault_proxy;
pub mod gate;
pub mod http;
pub mod kafka;
pub mod postgres;
pub mod postgres_tls;
pub mod process;
pub mod prometheus;
pub mod psql;
pub mod qdrant;
pub mod questions;
pub mod site;
pub mod table;
pub mod tls_proxy;
pub mod vecsync;
