//! Lines and literals: the same cut, whatever was read at a time, and never beyond the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mail_proxy::line::{Framed, Framer, Input, MAX_LINE, MAX_LITERALS};

fuzz_target!(|data: &[u8]| {
    let whole = commands(&[data]);
    assert_eq!(whole, commands(&data.chunks(1).collect::<Vec<_>>()));
    let cut = data.first().map_or(0, |&first| usize::from(first) % data.len());
    assert_eq!(whole, commands(&[&data[..cut], &data[cut..]]));
});

/// The commands, and how it ended.
fn commands(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, &'static str) {
    let (mut input, mut framer, mut found) = (Input::default(), Framer::default(), Vec::new());
    for piece in pieces {
        input.push(piece);
        loop {
            match framer.next(input.unread()) {
                Framed::NeedInput => break,
                Framed::Waits { end } => assert!(end <= MAX_LINE + MAX_LITERALS),
                Framed::Command { end } | Framed::TooBig { end } => {
                    assert!(end <= MAX_LINE + MAX_LITERALS && input.unread()[..end].ends_with(b"\n"));
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
