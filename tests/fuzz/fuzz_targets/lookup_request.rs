//! Requests of an old proxy on port 7072, and what it is answered.
#![no_main]

use libfuzzer_sys::fuzz_target;

// What is checked there is not only for this target.
#[allow(dead_code)]
#[path = "../../../route-cache/tests/bytes/checks.rs"]
mod checks;

thread_local! {
    static HOUSE: checks::House = checks::House::open();
}

fuzz_target!(|bytes: &[u8]| HOUSE.with(|house| house.lookup_request(bytes)));
