//! The first message of a TLS client, as far as it says which name and which protocols it asks for (RFC 8446 §4.1.2);
//! pure.
//!
//! Here it is only looked at: the TLS library reads it again, and more strictly.

/// Longest that is looked at, with its records. Those of authorities and browsers have below 2 KiB.
pub const HELLO_MAX: usize = 8 * 1024;
/// Fixed parts: of a record (RFC 8446 §5.1), and of a handshake message (§4).
const RECORD_HEAD: usize = 5;
const MESSAGE_HEAD: usize = 4;
/// The types of the record, of the message, and of the extensions that are read (§5.1, §4, §4.2).
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// The type of a host name among server names (RFC 6066 §3).
const HOST_NAME: u8 = 0;

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name (RFC 6066), as it was sent.
    pub name: Option<String>,
    /// The protocols (RFC 7301), by its preference.
    pub protocols: Vec<Vec<u8>>,
}

/// How far the message has come.
#[derive(Debug, PartialEq, Eq)]
pub enum HelloProgress {
    /// It has begun, and more must follow.
    Incomplete,
    /// It is here.
    Complete(ClientHello),
    /// These bytes are something else, or too long.
    Other,
}

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> HelloProgress {
    let bytes = &bytes[..bytes.len().min(HELLO_MAX)];
    let (mut message, mut rest) = (Vec::new(), bytes);
    loop {
        if let Some((head, body)) = message.split_first_chunk::<MESSAGE_HEAD>() {
            let [kind, length @ ..] = *head;
            let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if kind != CLIENT_HELLO || length > HELLO_MAX {
                return HelloProgress::Other;
            }
            if let Some(body) = body.get(..length) {
                return read(body).map_or(HelloProgress::Other, HelloProgress::Complete);
            }
        }
        let Some((head, after)) = rest.split_first_chunk::<RECORD_HEAD>() else {
            return unfinished(bytes, rest);
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[0] != HANDSHAKE || length == 0 {
            return HelloProgress::Other;
        }
        let Some((fragment, after)) = after.split_at_checked(length) else {
            return unfinished(bytes, rest);
        };
        message.extend_from_slice(fragment);
        rest = after;
    }
}

/// What these bytes are, which end within a record.
fn unfinished(bytes: &[u8], record: &[u8]) -> HelloProgress {
    let is_handshake = record.first().is_none_or(|kind| *kind == HANDSHAKE);
    match is_handshake && bytes.len() < HELLO_MAX {
        true => HelloProgress::Incomplete,
        false => HelloProgress::Other,
    }
}

fn read(body: &[u8]) -> Option<ClientHello> {
    let mut fields = HelloFields(body);
    // legacy_version and random.
    fields.take(2 + 32)?;
    let _session_id = fields.short_list()?;
    let _ciphers = fields.list()?;
    let _compressions = fields.short_list()?;
    let mut hello = ClientHello::default();
    if fields.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = HelloFields(fields.list()?);
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.number()?, HelloFields(extensions.list()?));
        match kind {
            SERVER_NAME => hello.name = host_name(content)?,
            ALPN => hello.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn host_name(mut content: HelloFields<'_>) -> Option<Option<String>> {
    let mut names = HelloFields(content.list()?);
    while !names.0.is_empty() {
        let (kind, name) = (names.take(1)?[0], names.list()?);
        if kind == HOST_NAME {
            return Some(String::from_utf8(name.to_vec()).ok());
        }
    }
    Some(None)
}

fn protocols(mut content: HelloFields<'_>) -> Option<Vec<Vec<u8>>> {
    let (mut names, mut protocols) = (HelloFields(content.list()?), Vec::new());
    while !names.0.is_empty() {
        protocols.push(names.short_list()?.to_vec());
    }
    Some(protocols)
}

/// Bytes that are still to be read, in the presentation of RFC 8446 §3.
struct HelloFields<'b>(&'b [u8]);

impl<'b> HelloFields<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Behind a length of two bytes.
    fn list(&mut self) -> Option<&'b [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    /// Behind a length of one byte.
    fn short_list(&mut self) -> Option<&'b [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use openssl::ssl::{SslConnector, SslMethod};

    use super::*;

    /// A stream that nobody answers on, and what was written to it.
    #[derive(Debug, Default)]
    struct Sent(Vec<u8>);

    impl Read for Sent {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a real client sends first.
    fn hello(name: &str, protocols: &[u8]) -> Vec<u8> {
        let mut tls = SslConnector::builder(SslMethod::tls_client()).unwrap();
        tls.set_alpn_protos(protocols).unwrap();
        let begun = tls.build().configure().unwrap().connect(name, Sent::default());
        match begun.unwrap_err() {
            openssl::ssl::HandshakeError::WouldBlock(begun) => begun.get_ref().0.clone(),
            other => panic!("{other}"),
        }
    }

    fn complete(name: &str, protocols: &[&str]) -> HelloProgress {
        HelloProgress::Complete(ClientHello {
            name: Some(name.to_owned()),
            protocols: protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        })
    }

    /// The same message in records of at most so many bytes.
    fn cut(hello: &[u8], most: usize) -> Vec<u8> {
        let records = hello[RECORD_HEAD..].chunks(most).map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&hello[..3], &length, part].concat()
        });
        records.flatten().collect()
    }

    #[test]
    fn a_real_client_is_understood_wherever_its_bytes_are_cut() {
        let hello = hello("mail.a.test", b"\x0aacme-tls/1\x02h2");
        let expected = complete("mail.a.test", &["acme-tls/1", "h2"]);
        for bytes in [hello.clone(), cut(&hello, 3), cut(&hello, 100)] {
            assert_eq!(parse(&bytes), expected);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), HelloProgress::Incomplete, "{end}");
            }
            let more = [&bytes[..], b"\x17\x03\x03"].concat();
            assert_eq!(parse(&more), expected, "what follows is not looked at");
        }
    }

    #[test]
    fn anything_else_is_left_alone() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\x16\x03\x03\x00\x00",
            b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
            b"\x16\x03\x03\x00\x04\x01\xff\xff\xff",
        ] {
            assert_eq!(parse(bytes), HelloProgress::Other, "{bytes:?}");
        }
        // A message that does not fit, in records that do.
        let long = [&[1, 0, 0x1f, 0xff][..], &[0; 2 * HELLO_MAX]].concat();
        let long = cut(&[&b"\x16\x03\x01\x00\x00"[..], &long].concat(), 100);
        assert_eq!(parse(&long[..HELLO_MAX]), HelloProgress::Other);
    }

    /// No byte of a client may make the listener panic.
    #[test]
    fn a_changed_byte_is_no_surprise() {
        let hello = hello("mail.a.test", b"\x02h2");
        for at in 0..hello.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = hello.clone();
                changed[at] = value;
                let _any = parse(&changed);
                let _any = parse(&changed[..at]);
            }
        }
    }
}
