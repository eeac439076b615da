//! What the throttle costs a login, and how much memory a flood of addresses takes.
//!
//! `cargo bench -p mail-proxy --bench throttle`. It prints the CPU time of this thread; the limits are 2 µs for a login
//! and 64 MiB.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mail_proxy::throttle::{Answered, Claim, Judgement, LoginChannel, PasswordMark, Throttle, ThrottleSettings};

const LOGINS: u32 = 1_000_000;
/// Logins of a known account beside as many guesses.
const TURN: u32 = 10_000;

fn main() {
    let throttle = Throttle::new(ThrottleSettings::default());
    println!("{:36} {:>10} {:>10}", "a million logins", "ns each", "RSS MiB");
    let known = |n: u32| (n % 10_000, n % 10_000, Answered::Right);
    let guess = |n: u32| (n, n, Answered::Wrong);
    measure("first of 10,000 accounts, then known", &throttle, known);
    measure("known", &throttle, known);
    beside("known, beside a million guesses", &throttle, known, guess);
    measure("known, after them", &throttle, known);
    measure("ten million addresses", &throttle, |n| (n, 10 * n, Answered::Wrong));
    measure("one account, refused", &throttle, |n| (7, n % 1_000, Answered::Wrong));
    measure("known, after the flood", &throttle, known);
    let begun = Instant::now();
    let kept = throttle.kept();
    println!("{} MiB are kept in {:?}", kept.len() >> 20, begun.elapsed());
}

/// Measures attempts; each number has an account, an address and an outcome.
fn measure(name: &str, throttle: &Throttle, attempt: impl Fn(u32) -> (u32, u32, Answered)) {
    let took: Duration = (0..LOGINS)
        .step_by(TURN as usize)
        .map(|first| turn(throttle, first, &attempt))
        .sum();
    print(name, took);
}

/// Measures attempts that take turns with others, which are not measured.
fn beside(
    name: &str,
    throttle: &Throttle,
    attempt: impl Fn(u32) -> (u32, u32, Answered),
    other: impl Fn(u32) -> (u32, u32, Answered),
) {
    let turns = (0..LOGINS).step_by(TURN as usize).map(|first| {
        turn(throttle, first, &other);
        turn(throttle, first, &attempt)
    });
    let took = turns.sum();
    print(name, took);
}

fn print(name: &str, took: Duration) {
    println!("{name:36} {:>10} {:>10}", (took / LOGINS).as_nanos(), resident_mib());
}

/// Some attempts, from the one with this number on; returns the CPU time that they took.
fn turn(throttle: &Throttle, first: u32, attempt: impl Fn(u32) -> (u32, u32, Answered)) -> Duration {
    let names: Vec<String> = (first..first + TURN)
        .map(|n| format!("user{}@example.test", attempt(n).0))
        .collect();
    let begun = cpu_time();
    for (n, name) in (first..).zip(&names) {
        let (_, address, answer) = attempt(n);
        let claim = Claim {
            account: name,
            client: IpAddr::from((0x0b00_0000 + address).to_be_bytes()),
            password: Some(PasswordMark::of(&n.to_be_bytes())),
            channel: LoginChannel::default(),
        };
        if let Judgement::Pass(ticket, _) = black_box(throttle.ask(&claim, Duration::ZERO, throttle.now())) {
            throttle.answered(ticket, answer, throttle.now());
        }
    }
    cpu_time() - begun
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
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
