#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mm_fuzz::c_calls::run(data));
