//! What the throttle costs a login, and how much memory a flood of addresses takes.
//!
//! `cargo bench -p mail-proxy --bench throttle`. It prints; the limits are 2 µs for a login and 64 MiB.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mail_proxy::throttle::{Answered, Claim, Judgement, LoginChannel, PasswordMark, Throttle, ThrottleSettings};

const LOGINS: u32 = 1_000_000;

fn main() {
    let throttle = Throttle::new(ThrottleSettings::default());
    println!("{:36} {:>10} {:>10}", "a million logins", "ns each", "RSS MiB");
    let known = |n: u32| (n % 10_000, n % 10_000, Answered::Right);
    measure("first of 10,000 accounts, then known", &throttle, known);
    measure("known", &throttle, known);
    measure("one guess from each address", &throttle, |n| (n, n, Answered::Wrong));
    measure("ten million addresses", &throttle, |n| (n, 10 * n, Answered::Wrong));
    measure("one account, refused", &throttle, |n| (7, n % 1_000, Answered::Wrong));
    measure("known, after the flood", &throttle, known);
    let begun = Instant::now();
    let kept = throttle.kept();
    println!("{} MiB are kept in {:?}", kept.len() >> 20, begun.elapsed());
}

/// Account, address and outcome of the attempt with this number.
fn measure(name: &str, throttle: &Throttle, attempt: impl Fn(u32) -> (u32, u32, Answered)) {
    let names: Vec<String> = (0..LOGINS)
        .map(|n| format!("user{}@example.test", attempt(n).0))
        .collect();
    let begun = Instant::now();
    for n in 0..LOGINS {
        let (_, address, answer) = attempt(n);
        let claim = Claim {
            account: &names[n as usize],
            client: IpAddr::from((0x0b00_0000 + address).to_be_bytes()),
            password: Some(PasswordMark::of(&n.to_be_bytes())),
            channel: LoginChannel::default(),
        };
        if let Judgement::Pass(ticket, _) = black_box(throttle.ask(&claim, Duration::ZERO, throttle.now())) {
            throttle.answered(ticket, answer, throttle.now());
        }
    }
    let each = begun.elapsed() / LOGINS;
    println!("{name:36} {:>10} {:>10}", each.as_nanos(), resident_mib());
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    (pages * 4096) >> 20
}
