//! Bytes become lines, and IMAP commands with their literals, within limits.
//!
//! The cut is made before anything is parsed, so that even a malformed command has a known end and the octets of
//! a literal can never be taken for a command. What a line means is deliberately not known here.

use std::fmt;
use std::mem;

use mail_directory::Secret;

/// Octets of one line with its end, where a line is all there is: in POP3 and in a SASL dialogue. A token of 12 KiB in
/// base64 fits.
pub const MAX_LINE: usize = 17 * 1024;

/// Octets of one IMAP command with its literals. RFC 7162 section 4 asks for lines of at least 8192; the longest ID that
/// RFC 2971 section 3.3 allows, 30 pairs of 30 and 1,024 octets, takes 31,800 as quoted strings.
pub const MAX_COMMAND: usize = 36 * 1024;

/// Unread octets at which a machine asks for no more. Larger than the longest command, otherwise an unfinished command
/// could wait for input forever.
pub const MAX_HELD: usize = 40 * 1024;

/// Unread input. Passwords pass through, so memory is wiped before it is given back.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    /// Appends what was read.
    pub fn push(&mut self, more: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < more.len() {
            self.renew(more.len());
        }
        self.bytes.extend_from_slice(more);
    }

    /// What was not consumed yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Whether another read may be pushed.
    pub fn has_room(&self) -> bool {
        self.unread().len() < MAX_HELD
    }

    /// Drops the first `octets`. Once nothing is unread, all memory is wiped and given back.
    pub fn consume(&mut self, octets: usize) {
        self.start += octets;
        if self.start >= self.bytes.len() {
            self.clear();
        }
    }

    /// Like [`Input::consume`], for octets that may hold a password: they are wiped now.
    pub fn consume_secret(&mut self, octets: usize) {
        self.consume(octets);
        if self.start > 0 {
            self.renew(0);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.start = 0;
        wipe(mem::take(&mut self.bytes));
    }

    /// Moves what is unread into new memory. A vector that grows by itself would leave the old octets behind.
    fn renew(&mut self, room: usize) {
        let unread = self.unread();
        let mut fresh = Vec::with_capacity((unread.len() + room).next_power_of_two());
        fresh.extend_from_slice(unread);
        wipe(mem::replace(&mut self.bytes, fresh));
        self.start = 0;
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Input({} octets)", self.unread().len())
    }
}

/// Overwrites the whole vector, spare capacity included, before its memory is given back.
fn wipe(bytes: Vec<u8>) {
    drop(Secret::new(bytes));
}

/// What [`find_line`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineSearch {
    /// No line end yet.
    NeedInput,
    /// A line: its text is `bytes[..text]`, and with its end it is `bytes[..end]`.
    Line {
        /// Octets of the text.
        text: usize,
        /// Octets of the text and the line end.
        end: usize,
    },
    /// There is no line end within the limit.
    TooLong,
}

/// Finds the first line of `bytes`, which with its end may have `limit` octets.
///
/// Both CRLF and a bare LF end a line, on both sides of the proxy: administrators type at `openssl s_client`, and a rule
/// that differs between the sides would let one of them smuggle. A CR elsewhere stays in the text, and no grammar
/// here allows it.
pub fn find_line(bytes: &[u8], limit: usize) -> LineSearch {
    let window = &bytes[..bytes.len().min(limit)];
    match window.iter().position(|&byte| byte == b'\n') {
        Some(lf) => {
            let cr = usize::from(window[..lf].ends_with(b"\r"));
            LineSearch::Line {
                text: lf - cr,
                end: lf + 1,
            }
        }
        None if bytes.len() >= limit => LineSearch::TooLong,
        None => LineSearch::NeedInput,
    }
}

/// Whether a text holds neither NUL nor CR, which no line of IMAP or POP3 may.
pub fn is_clean(text: &[u8]) -> bool {
    !text.iter().any(|byte| matches!(byte, 0 | b'\r'))
}

/// The announcement of a literal at the end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiteralHeader {
    /// Where in the line the `{` stands.
    pub start: usize,
    /// Octets announced; the largest number if they do not fit one.
    pub octets: usize,
    /// Whether the sender waits for an invitation.
    pub waits: bool,
}

/// Reads the announcement at the end of a line (text without line end).
///
/// ```text
/// literal = "{" number64 ["+"] "}" CRLF *CHAR8      ; RFC 9051 section 9; "+" is RFC 7888
/// ```
pub fn literal_header(text: &[u8]) -> Option<LiteralHeader> {
    let inner = text.strip_suffix(b"}")?;
    let (digits_end, waits) = match inner.strip_suffix(b"+") {
        Some(shorter) => (shorter.len(), false),
        None => (inner.len(), true),
    };
    let digits = inner[..digits_end]
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let start = (digits_end - digits).checked_sub(1)?;
    if digits == 0 || text[start] != b'{' {
        return None;
    }
    let octets = text[start + 1..digits_end].iter().fold(0usize, |sum, digit| {
        sum.saturating_mul(10).saturating_add(usize::from(digit - b'0'))
    });
    Some(LiteralHeader { start, octets, waits })
}

/// What [`Framer::next`] found. All ends are counted from the beginning of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed {
    /// The command is not complete.
    NeedInput,
    /// The command, with its last line end, is `bytes[..end]`.
    Command {
        /// Octets of the command.
        end: usize,
    },
    /// The sender waits for an invitation to send a literal, announced at the end of `bytes[..end]`. Calling
    /// [`Framer::next`] again means that it was invited.
    Waits {
        /// Octets of the command so far.
        end: usize,
    },
    /// Like [`Framed::Waits`], but the literal is too large to be invited.
    TooBig {
        /// Octets of the command so far.
        end: usize,
    },
    /// The command has no end within the limits: it is unknown where the next one begins.
    TooLong,
}

/// Cuts IMAP commands: lines, joined by literals. One framer for one command.
#[derive(Debug, Default)]
pub struct Framer {
    /// Up to here the command is known.
    at: usize,
    /// Octets of its lines and literals so far, those of a literal that is awaited included.
    taken: usize,
    /// Octets of the literal that begins at `at`.
    pending: usize,
}

impl Framer {
    /// Goes on with a command that begins at `bytes[0]`; `bytes` only ever grows.
    pub fn next(&mut self, bytes: &[u8]) -> Framed {
        loop {
            if bytes.len() - self.at < self.pending {
                return Framed::NeedInput;
            }
            let begin = self.at + mem::take(&mut self.pending);
            self.at = begin;
            let (text, end) = match find_line(&bytes[begin..], MAX_COMMAND - self.taken) {
                LineSearch::NeedInput => return Framed::NeedInput,
                LineSearch::TooLong => return Framed::TooLong,
                LineSearch::Line { text, end } => (text, end),
            };
            self.at += end;
            self.taken += end;
            let Some(header) = literal_header(&bytes[begin..begin + text]) else {
                return Framed::Command { end: self.at };
            };
            // Its line still wants an end.
            let room = (MAX_COMMAND - self.taken).saturating_sub("\r\n".len());
            match (header.octets <= room, header.waits) {
                (false, true) => return Framed::TooBig { end: self.at },
                (false, false) => return Framed::TooLong,
                (true, waits) => {
                    self.pending = header.octets;
                    self.taken += header.octets;
                    if waits {
                        return Framed::Waits { end: self.at };
                    }
                }
            }
        }
    }

    /// Whether the octets of a literal are awaited.
    pub fn in_literal(&self) -> bool {
        self.pending > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &[Framed]) {
        let mut framer = Framer::default();
        let found: Vec<_> = expected.iter().map(|_| framer.next(bytes)).collect();
        assert_eq!(found, expected, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn commands() {
        check(b"", &[Framed::NeedInput]);
        check(b"a NOOP\r", &[Framed::NeedInput]);
        check(b"a NOOP\r\nb", &[Framed::Command { end: 8 }]);
        check(b"a NOOP\nb", &[Framed::Command { end: 7 }]);
        check(b"\r\n", &[Framed::Command { end: 2 }]);
        check(b"a {x}\r\n", &[Framed::Command { end: 7 }]);
        check(b"a {}\r\n", &[Framed::Command { end: 6 }]);
        check(b"5}\r\n", &[Framed::Command { end: 4 }]);
    }

    #[test]
    fn literals() {
        let all = b"a {2}\r\n\r\n {1+}\r\n}\r\n";
        check(&all[..7], &[Framed::Waits { end: 7 }, Framed::NeedInput]);
        check(all, &[Framed::Waits { end: 7 }, Framed::Command { end: 19 }]);
        check(
            b"a {0}\r\n\r\n",
            &[Framed::Waits { end: 7 }, Framed::Command { end: 9 }],
        );
        check(b"a {0+}\r\n\r\n", &[Framed::Command { end: 10 }]);
        check(b"a {36851}\r\n", &[Framed::Waits { end: 11 }]);
        check(b"a {36852}\r\n", &[Framed::TooBig { end: 11 }]);
        check(b"a {36851+}\r\n", &[Framed::TooLong]);
        check(b"a {18446744073709551616+}\r\n", &[Framed::TooLong]);
        check(b"a {18446744073709551616}\r\n", &[Framed::TooBig { end: 26 }]);
        check(
            b"a {1}\r\nx {36845}\r\n",
            &[Framed::Waits { end: 7 }, Framed::TooBig { end: 18 }],
        );
    }

    #[test]
    fn a_line_ends_within_the_limit() {
        let mut line = vec![b'x'; MAX_COMMAND - 2];
        line.extend_from_slice(b"\r\n");
        check(&line, &[Framed::Command { end: MAX_COMMAND }]);
        line.insert(0, b'x');
        check(&line, &[Framed::TooLong]);
        check(&line[..MAX_COMMAND], &[Framed::TooLong]);
        check(&line[..MAX_COMMAND - 1], &[Framed::NeedInput]);
    }

    #[test]
    fn consumed_memory_is_given_back() {
        let mut input = Input::default();
        input.push(&[b'x'; 38_000]);
        assert!(input.has_room());
        input.push(&[b'x'; 3_000]);
        assert!(!input.has_room());
        input.consume_secret(40_990);
        assert_eq!((input.unread(), input.start), (&[b'x'; 10][..], 0));
        assert!(input.bytes.capacity() <= 16);
        input.consume(10);
        assert_eq!(input.bytes.capacity(), 0);
    }
}
