//! One message of the output plugin: see `decoders::message`.
#![no_main]

#[path = "../../tests/support/decoders.rs"]
#[allow(dead_code, reason = "each target uses a part of it")]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::message(bytes));
