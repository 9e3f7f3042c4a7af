//! The check `backend` of pgwire's hostile inputs, on a fuzzer's bytes.
#![no_main]

#[path = "../../pgwire/tests/inputs/mod.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::backend(bytes));
