//! Tests in this process: no server, no network.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod house;
