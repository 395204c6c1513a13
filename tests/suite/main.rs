//! Tests without other servers: in this process, or of the binary alone; real sockets and files.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod config;
mod embedding;
mod embedding_log;
mod house;
mod http;
mod http_page;
