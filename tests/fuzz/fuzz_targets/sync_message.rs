//! Messages of an LDAP server that tells changes. What holds for them is in `tests/checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portico_checks::check("sync_message", bytes));
