//! What a server says, from its first byte on: see `decoders::stream`.
#![no_main]

#[path = "../../tests/support/decoders.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::stream(bytes));
