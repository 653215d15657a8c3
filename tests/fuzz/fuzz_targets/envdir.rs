#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| starter::fuzz::envdir(bytes));
