//! Responses of a lookup service.
#![no_main]

use libfuzzer_sys::fuzz_target;

// What is checked there is not only for this target.
#[allow(dead_code)]
#[path = "../../../route-cache/tests/bytes/checks.rs"]
mod checks;

fuzz_target!(|bytes: &[u8]| checks::lookup_response(bytes));
