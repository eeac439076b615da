//! SASL messages, one a line: first the mechanism, then the responses. Both as they are and as base64 of themselves.

use crate::mail::check_credentials;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_proxy::Mechanism;
use mail_proxy::sasl::{Exchange, Progress, decode};

pub(crate) fn check(data: &[u8]) {
    let encoded = STANDARD.encode(data);
    assert_eq!(decode(encoded.as_bytes()).expect("valid base64").expose(), data);
    play(data, <[u8]>::to_vec);
    play(data, |line| STANDARD.encode(line).into_bytes());
}

/// No dialogue takes more than two responses.
fn play(data: &[u8], encode: impl Fn(&[u8]) -> Vec<u8>) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let Some(mechanism) = Mechanism::of_sasl(lines.next().unwrap_or_default()) else {
        return;
    };
    let mut exchange = Exchange::begin(mechanism).expect("one of SASL");
    for (count, line) in lines.enumerate() {
        assert!(count < 2);
        let line = encode(line);
        let progress = if count == 0 {
            exchange.initial(&line)
        } else {
            exchange.response(&line)
        };
        match progress {
            Progress::Prompt(next) => exchange = next,
            Progress::Malformed => return,
            Progress::Done(Err(rejected)) => {
                assert!(rejected.user.is_none_or(|user| !user.chars().any(char::is_control)));
                return;
            }
            Progress::Done(Ok(credentials)) => {
                assert_eq!(credentials.mechanism, mechanism);
                check_credentials(&credentials);
                return;
            }
        }
    }
}
