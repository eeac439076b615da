//! First messages of TLS clients. What holds for them is in `tests/checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portico_checks::check("client_hello", bytes));
