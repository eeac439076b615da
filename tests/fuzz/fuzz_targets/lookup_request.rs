//! Requests of an old proxy on port 7072, and what it is answered. What holds for them is in `tests/checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portico_checks::check("lookup_request", bytes));
