//! The PROXY header parser: whatever a balancer, or somebody who pretends to be one, sends first.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The parser alone, without the program around it.
#[allow(dead_code)]
#[path = "../../../proxy-app/src/proxy_protocol.rs"]
mod proxy_protocol;

use proxy_protocol::{Progress, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    if let Ok(Progress::Complete(header, length)) = whole {
        assert!(length <= bytes.len());
        // Every proper beginning asks for more, and what follows does not matter.
        for n in 1..length {
            assert_eq!(parse(&bytes[..n]), Ok(Progress::Incomplete));
        }
        assert_eq!(parse(&bytes[..length]), Ok(Progress::Complete(header, length)));
    }
    if whole == Ok(Progress::Incomplete) {
        // An unfinished header is bounded, so a connection cannot be made to hold more.
        assert!(bytes.len() < 16 + 2048);
    }
    if let Err(error) = whole {
        // Once wrong, more bytes do not make it right.
        let more = [bytes, b"\r\n"].concat();
        assert_eq!(parse(&more), Err(error));
    }
});
