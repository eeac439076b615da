//! Paths of web requests in the form in which they are compared. What holds for them is in `tests/checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portico_checks::check("path", bytes));
