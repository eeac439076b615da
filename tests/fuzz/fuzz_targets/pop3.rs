//! Both POP3 machines.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mail_proxy::pop3::{Login, Settings, Upstream};
use portico_fuzz::{Plan, check_login, check_upstream};

fuzz_target!(|data: &[u8]| {
    let Some(plan) = Plan::parse(data) else { return };
    let settings = Arc::new(Settings::default());
    check_login(&plan, |channel| Login::new(settings.clone(), channel), Login::held);
    check_upstream(&plan, Upstream::new);
});
