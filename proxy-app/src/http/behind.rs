//! Finds where the body of an HTTP/1 request ends: what follows it belongs to the next request, and is kept for it.
//!
//! The engine reads as much as it gets, and takes a byte behind a request for a sign of a broken client. So it gets the
//! bytes of one request, and no more. What is read here decides nothing but that: the engine reads the body itself, and
//! where the two would differ no request follows on the connection.

/// Most fields of a head: the engine's own limit.
const FIELDS_MAX: usize = 256;
/// As many as nearly every head has.
const FIELDS_FEW: usize = 32;
/// Most digits of the size of a chunk: 2^60 bytes are more than any client sends.
const DIGITS_MAX: u8 = 15;

/// The part of a request that is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestBody {
    /// This many bytes.
    Sized(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked(ChunkPosition),
    /// Nothing. It asks for another protocol, and what the client sends before an answer may belong to that.
    Last,
    /// Not known here: the engine knows it, or refuses the request. All bytes are for the engine.
    Unclear,
}

/// The position in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkPosition {
    /// In the size of a chunk.
    Size { value: u64, digits: u8 },
    /// In the extension of a chunk.
    Extension { value: u64 },
    /// Behind the CR of the size's line.
    SizeEnd { value: u64 },
    /// In the data.
    Data(u64),
    /// Behind the data.
    DataEnd,
    /// Behind the CR that follows the data.
    DataEndLf,
    /// In a line of the trailers; `begun`: it is not empty.
    Trailer { begun: bool },
    /// Behind the CR of such a line.
    TrailerEnd { begun: bool },
    /// At the end.
    Over,
}

impl RequestBody {
    /// The body that this head announces (RFC 9112 §6.3).
    pub(crate) fn of(head: &[u8]) -> Self {
        let Some(end) = head.iter().position(|&b| b == b'\r') else {
            return Self::Unclear;
        };
        let (line, fields_of) = head.split_at(end);
        let fields_of = fields_of.strip_prefix(b"\r\n").unwrap_or_default();
        // The usual ones are few.
        let (mut few, mut many);
        few = [httparse::EMPTY_HEADER; FIELDS_FEW];
        let parsed = match httparse::parse_headers(fields_of, &mut few) {
            Err(httparse::Error::TooManyHeaders) => {
                many = vec![httparse::EMPTY_HEADER; FIELDS_MAX];
                httparse::parse_headers(fields_of, &mut many)
            }
            parsed => parsed,
        };
        let fields = match parsed {
            Ok(httparse::Status::Complete((length, fields))) if length == fields_of.len() => fields,
            _ => return Self::Unclear,
        };
        let (mut length, mut coding, mut upgrade) = (None, None, false);
        for field in fields {
            let told = match field.name {
                name if name.eq_ignore_ascii_case("content-length") => &mut length,
                name if name.eq_ignore_ascii_case("transfer-encoding") => &mut coding,
                name => {
                    upgrade |= name.eq_ignore_ascii_case("upgrade");
                    continue;
                }
            };
            if told.replace(field.value).is_some() {
                return Self::Unclear;
            }
        }
        match (length, coding) {
            _ if line.starts_with(b"CONNECT ") => Self::Unclear,
            (None, None) if upgrade => Self::Last,
            _ if upgrade => Self::Unclear,
            (None, None) => Self::Sized(0),
            (Some(length), None) => digits(length).map_or(Self::Unclear, RequestBody::Sized),
            // HTTP/1.0 has no chunks.
            (None, Some(coding)) if line.ends_with(b" HTTP/1.1") && coding.eq_ignore_ascii_case(b"chunked") => {
                Self::Chunked(ChunkPosition::FIRST)
            }
            _ => Self::Unclear,
        }
    }

    /// How many of these bytes belong to the request; they are on their way to the engine.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Unclear => bytes.len(),
            Self::Last => 0,
            Self::Sized(left) => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                taken
            }
            Self::Chunked(chunks) => match chunks.pass(bytes) {
                Some(taken) => taken,
                None => {
                    *self = Self::Unclear;
                    bytes.len()
                }
            },
        }
    }

    /// The request is complete.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Sized(0) | Self::Last | Self::Chunked(ChunkPosition::Over))
    }

    /// Whether another request may follow on the connection; `quiet`: nothing has come after this one.
    pub(crate) fn may_be_followed(&self, quiet: bool) -> bool {
        match self {
            Self::Sized(_) | Self::Chunked(_) => true,
            Self::Last => quiet,
            Self::Unclear => false,
        }
    }
}

/// `1*DIGIT` and nothing else.
fn digits(text: &[u8]) -> Option<u64> {
    let only_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| only_digits)?.parse().ok()
}

impl ChunkPosition {
    /// The position in front of a chunk.
    pub(crate) const FIRST: Self = Self::Size { value: 0, digits: 0 };

    /// How many of these bytes belong to the body; `None` where it is malformed.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() && *self != Self::Over {
            if let Self::Data(left) = self {
                let taken = usize::try_from(*left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
                *left -= taken as u64;
                at += taken;
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                continue;
            }
            *self = self.next(bytes[at])?;
            at += 1;
        }
        Some(at)
    }

    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size { value, digits }, _) if byte.is_ascii_hexdigit() && digits < DIGITS_MAX => Self::Size {
                value: value << 4 | u64::from(char::from(byte).to_digit(16)?),
                digits: digits + 1,
            },
            (Self::Size { digits: 0, .. }, _) => return None,
            (Self::Size { value, .. } | Self::Extension { value }, b'\r') => Self::SizeEnd { value },
            (Self::Size { value, .. }, b';' | b' ' | b'\t') => Self::Extension { value },
            (Self::Extension { value }, _) if byte != b'\n' && byte != 0 => Self::Extension { value },
            (Self::SizeEnd { value: 0 }, b'\n') => Self::Trailer { begun: false },
            (Self::SizeEnd { value }, b'\n') => Self::Data(value),
            (Self::DataEnd, b'\r') => Self::DataEndLf,
            (Self::DataEndLf, b'\n') => Self::FIRST,
            (Self::Trailer { begun }, b'\r') => Self::TrailerEnd { begun },
            (Self::Trailer { .. }, _) if byte != b'\n' && byte != 0 => Self::Trailer { begun: true },
            (Self::TrailerEnd { begun: true }, b'\n') => Self::Trailer { begun: false },
            (Self::TrailerEnd { begun: false }, b'\n') => Self::Over,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_what_follows() {
        for (fields, expected) in [
            ("", RequestBody::Sized(0)),
            ("Content-Length: 12\r\n", RequestBody::Sized(12)),
            ("Content-Length: +1\r\n", RequestBody::Unclear),
            ("Content-Length: 1, 1\r\n", RequestBody::Unclear),
            ("Content-Length:\r\n", RequestBody::Unclear),
            ("Content-Length: 18446744073709551616\r\n", RequestBody::Unclear),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", RequestBody::Unclear),
            (
                "Transfer-Encoding: Chunked\r\n",
                RequestBody::Chunked(ChunkPosition::FIRST),
            ),
            ("Transfer-Encoding: gzip, chunked\r\n", RequestBody::Unclear),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
                RequestBody::Unclear,
            ),
            ("Transfer-Encoding : chunked\r\n", RequestBody::Unclear),
            ("no field\r\n", RequestBody::Unclear),
            ("Upgrade: h2c\r\n", RequestBody::Last),
            ("Upgrade: h2c\r\nContent-Length: 3\r\n", RequestBody::Unclear),
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(RequestBody::of(head.as_bytes()), expected, "{fields:?}");
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(RequestBody::of(old), RequestBody::Unclear);
        assert_eq!(
            RequestBody::of(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            RequestBody::Unclear
        );
        assert_eq!(RequestBody::of(b"GET / HTTP/1.1\r\n\r\nGET"), RequestBody::Unclear);
    }

    /// How much of this is the body, however it is cut; `None`: it is malformed.
    #[track_caller]
    fn check(chunks: &str, expected: Option<&str>) {
        for cut in [1, 2, 3, 7, 1000] {
            let mut body = RequestBody::Chunked(ChunkPosition::FIRST);
            let mut taken = 0;
            for part in chunks.as_bytes().chunks(cut) {
                let passed = body.pass(part);
                taken += passed;
                if passed < part.len() {
                    break;
                }
            }
            match expected {
                Some(whole) => {
                    assert!(body.is_over(), "{chunks:?} {cut} {body:?}");
                    assert_eq!(&chunks[..taken], whole, "{cut}");
                }
                None => assert_eq!((body, taken), (RequestBody::Unclear, chunks.len()), "{chunks:?} {cut}"),
            }
        }
    }

    #[test]
    fn chunks_end_where_the_engine_ends_them() {
        check("0\r\n\r\nGET", Some("0\r\n\r\n"));
        check("3\r\nabc\r\n0\r\n\r\n\r\n", Some("3\r\nabc\r\n0\r\n\r\n"));
        check(
            "A;x=y\r\n0123456789\r\n00\r\nT: v\r\n\r\nP",
            Some("A;x=y\r\n0123456789\r\n00\r\nT: v\r\n\r\n"),
        );
        check("0 \r\n\r\n", Some("0 \r\n\r\n"));
        for broken in [
            "\r\n\r\n",
            "0x0\r\n\r\n",
            "+0\r\n",
            "0\n\n",
            "0;a\nb\r\n\r\n",
            "3\r\nabcX0\r\n\r\n",
            "0\r\nT: v\n\r\n",
            "FFFFFFFFFFFFFFFFF\r\n",
            "0;a\rb\r\n\r\n",
        ] {
            check(broken, None);
        }
    }

    #[test]
    fn bytes_behind_a_sized_body_stay() {
        let mut body = RequestBody::Sized(5);
        assert_eq!((body.pass(b"abc"), body.is_over()), (3, false));
        assert_eq!((body.pass(b"deGET /"), body.is_over()), (2, true));
        assert_eq!(body.pass(b"GET /"), 0);
        assert_eq!(RequestBody::Last.pass(b"frame"), 0);
        assert_eq!(RequestBody::Unclear.pass(b"frame"), 5);
    }
}
