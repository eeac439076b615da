//! Lines and literals: the same cut, whatever was read at a time, and never beyond the limits.

use mail_proxy::line::{Framed, Framer, Input, MAX_COMMAND};

pub(crate) fn check(bytes: &[u8]) {
    crate::check_ways(bytes, commands);
}

/// The commands, and how it ended.
fn commands(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, &'static str) {
    let (mut input, mut framer, mut found) = (Input::default(), Framer::default(), Vec::new());
    for piece in pieces {
        input.push(piece);
        loop {
            match framer.next(input.unread()) {
                Framed::NeedInput => break,
                Framed::Waits { end } => assert!(end <= MAX_COMMAND),
                Framed::Command { end } | Framed::TooBig { end } => {
                    assert!(end <= MAX_COMMAND && input.unread()[..end].ends_with(b"\n"));
                    found.push(input.unread()[..end].to_vec());
                    input.consume(end);
                    framer = Framer::default();
                }
                Framed::TooLong => return (found, "too long"),
            }
        }
    }
    (found, if framer.in_literal() { "literal" } else { "line" })
}
