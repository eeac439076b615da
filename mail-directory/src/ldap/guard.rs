//! What an LDAP server sends, judged before the library sees it.
//!
//! The library reads elements in elements by calling itself, as deep as a server likes: some thousand levels end the
//! process. It takes messages of any length, begins anew with each part of one that arrives, and panics at what it
//! does not expect. So it gets whole messages of bounded length and depth, in the form of RFC 4511, and no others.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::ber::{BOOLEAN, ENUMERATED, Elements, INTEGER, OCTETS, SEQUENCE};
use super::sync_message::op;
use super::sync_wire::{MAX_MESSAGE, Stream, first_message};

/// Bytes that are read at once.
const AT_ONCE: usize = 16 * 1024;
/// Levels of elements in a message. The results that LDAP knows have five.
const DEPTH: usize = 16;

/// The bit of a tag that says that elements are inside.
const CONSTRUCTED: u8 = 0x20;
/// Where Active Directory puts the name of a notice, which stands in the result by RFC 4511 §4.4.1.
const MISPLACED_NAME: u8 = 0x8a;

/// Why a connection is given up that has not ended.
#[derive(Debug, thiserror::Error)]
#[error("a message is no LDAP, longer than {MAX_MESSAGE} bytes, or nested deeper than {DEPTH}")]
struct NotToBePassed;

/// The library's end of a connection to this server, and the task that passes messages until one side ends it.
///
/// # Errors
///
/// The system has no pair of sockets left.
pub(super) fn guarded(server: Box<dyn Stream>, url: String) -> io::Result<(StdUnixStream, JoinHandle<()>)> {
    let (library, inner) = StdUnixStream::pair()?;
    inner.set_nonblocking(true)?;
    let inner = UnixStream::from_std(inner)?;
    let task = tokio::spawn(async move {
        if let Err(why) = pass(server, inner).await {
            log::warn!("a connection to directory server {url} is given up: {why}");
        }
    });
    Ok((library, task))
}

async fn pass(server: Box<dyn Stream>, library: UnixStream) -> Result<(), NotToBePassed> {
    let (mut from_server, mut to_server) = split(server);
    let (mut from_library, mut to_library) = library.into_split();
    tokio::select! {
        end = judge(&mut from_server, &mut to_library) => end,
        _end = copy(&mut from_library, &mut to_server) => Ok(()),
    }
}

/// Passes whole messages on, until one side ends or one of them is refused.
async fn judge(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), NotToBePassed> {
    let mut read = Vec::new();
    loop {
        let whole = good(&read).ok_or(NotToBePassed)?;
        let written = to.write_all(&read[..whole]).await;
        read.drain(..whole);
        read.reserve(AT_ONCE);
        if written.is_err() || !matches!(from.read_buf(&mut read).await, Ok(1..)) {
            return Ok(());
        }
    }
}

/// How many bytes at the beginning are whole messages that the library can read. `None` if one that it cannot read is
/// among them.
pub fn good(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(first) = first_message(&bytes[at..]).ok()? {
        message(&bytes[at..][first.clone()])?;
        at += first.end;
    }
    Some(at)
}

/// `LDAPMessage` (RFC 4511 §4.1.1).
fn message(content: &[u8]) -> Option<()> {
    nested(content, DEPTH)?;
    let mut parts = Elements::of(content);
    parts.number(INTEGER)?;
    let (tag, operation) = parts.any()?;
    match tag {
        op::ENTRY | op::INTERMEDIATE => {}
        op::REFERENCE => texts(operation)?,
        _ => result(tag, operation)?,
    }
    if let Some(list) = parts.take_if(op::CONTROLS) {
        controls(list)?;
    } else if !parts.is_empty() {
        parts.take(MISPLACED_NAME)?;
    }
    parts.is_empty().then_some(())
}

/// Elements that fill their place, in elements that do, and no deeper than this.
fn nested(content: &[u8], depth: usize) -> Option<()> {
    let mut parts = Elements::of(content);
    while !parts.is_empty() {
        let (tag, inner) = parts.any()?;
        if tag & CONSTRUCTED != 0 {
            nested(inner, depth.checked_sub(1)?)?;
        }
    }
    Some(())
}

/// `LDAPResult` (§4.1.9), and what a bind or an extended operation has behind it.
fn result(tag: u8, content: &[u8]) -> Option<()> {
    let mut parts = Elements::of(content);
    let is_result = tag & !0x1f == 0x60;
    parts.number(ENUMERATED).filter(|_| is_result)?;
    text(parts.take(OCTETS)?)?;
    text(parts.take(OCTETS)?)?;
    while !parts.is_empty() {
        let (tag, content) = parts.any()?;
        match (tag, tag & 0x1f) {
            (0xa3, _) => texts(content)?,
            (0x8a, _) => text(content)?,
            (0x87 | 0x8b, _) => {}
            (_, 3 | 7 | 10 | 11) => return None,
            _ => {}
        }
    }
    Some(())
}

/// `Controls` (§4.1.11).
fn controls(list: &[u8]) -> Option<()> {
    let mut list = Elements::of(list);
    while !list.is_empty() {
        let mut control = Elements::of(list.take(SEQUENCE)?);
        text(control.take(OCTETS)?)?;
        if let Some(critical) = control.take_if(BOOLEAN) {
            critical.first()?;
        }
        if !control.is_empty() {
            control.take(OCTETS)?;
        }
    }
    Some(())
}

fn texts(content: &[u8]) -> Option<()> {
    let mut parts = Elements::of(content);
    while !parts.is_empty() {
        text(parts.take(OCTETS)?)?;
    }
    Some(())
}

fn text(bytes: &[u8]) -> Option<()> {
    std::str::from_utf8(bytes).ok().map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::ber::{element, integer};
    use super::*;

    fn message_of(tag: u8, content: &[u8], behind: &[u8]) -> Vec<u8> {
        let parts = [integer(INTEGER, 7), element(tag, content), behind.to_vec()];
        element(SEQUENCE, &parts.concat())
    }

    fn result_of(code: u8, behind: &[u8]) -> Vec<u8> {
        [&[ENUMERATED, 1, code, OCTETS, 0, OCTETS, 2, b'n', b'o'], behind].concat()
    }

    #[test]
    fn what_rfc_4511_knows_passes() {
        let paged = element(OCTETS, &element(SEQUENCE, &[INTEGER, 1, 0, OCTETS, 1, b'c']));
        let control = element(SEQUENCE, &[element(OCTETS, b"1.2.840.113556.1.4.319"), paged].concat());
        let attribute = element(
            SEQUENCE,
            &[element(OCTETS, b"cn"), element(0x31, &element(OCTETS, b"\xff"))].concat(),
        );
        let entry = [element(OCTETS, b"cn=a"), element(SEQUENCE, &attribute)].concat();
        let referral = element(0xa3, &element(OCTETS, b"ldap://other"));
        for whole in [
            message_of(op::BOUND, &result_of(0, &[]), &[]),
            message_of(op::BOUND, &result_of(14, &element(0x87, b"challenge")), &[]),
            message_of(op::DONE, &result_of(0, &[]), &element(op::CONTROLS, &control)),
            message_of(op::DONE, &result_of(10, &referral), &[]),
            message_of(op::ENTRY, &entry, &[]),
            message_of(op::REFERENCE, &element(OCTETS, b"ldap://other/dc=b"), &[]),
            message_of(
                op::EXTENDED_DONE,
                &result_of(52, &[]),
                &element(MISPLACED_NAME, b"1.3.6.1"),
            ),
            message_of(0x67, &result_of(50, &[]), &[]),
        ] {
            for cut in 0..whole.len() {
                assert_eq!(good(&whole[..cut]), Some(0), "{cut} bytes of {whole:02x?}");
            }
            let twice = [&whole[..], &whole[..], &whole[..1]].concat();
            assert_eq!(good(&twice), Some(whole.len() * 2), "{whole:02x?}");
        }
    }

    #[test]
    fn what_the_library_cannot_bear_does_not() {
        let deep = (0..DEPTH).fold(element(OCTETS, b""), |inner, _| element(SEQUENCE, &inner));
        let no_text = [ENUMERATED, 1, 0, OCTETS, 1, 0xff, OCTETS, 0];
        for whole in [
            b"HTTP/1.1 400 Bad Request".to_vec(),
            vec![SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff],
            vec![SEQUENCE, 0x80],
            element(SEQUENCE, &[]),
            element(SEQUENCE, &integer(INTEGER, 7)),
            element(SEQUENCE, &[INTEGER, 0]),
            message_of(op::ENTRY, &deep, &[]),
            message_of(op::ENTRY, &[OCTETS, 5, b'a'], &[]),
            message_of(op::BOUND, &[], &[]),
            message_of(op::BOUND, &no_text, &[]),
            message_of(op::DONE, &result_of(0, &[0x83, 0]), &[]),
            message_of(op::DONE, &result_of(0, &[]), &element(op::CONTROLS, &[OCTETS, 0])),
            message_of(
                op::DONE,
                &result_of(0, &[]),
                &element(op::CONTROLS, &element(SEQUENCE, &[OCTETS, 1, b'1', BOOLEAN, 0])),
            ),
            message_of(op::DONE, &result_of(0, &[]), &[INTEGER, 1, 1]),
            message_of(0x04, &result_of(0, &[]), &[]),
        ] {
            assert_eq!(good(&whole), None, "{whole:02x?}");
        }
    }

    /// Ten thousand levels are refused without a call for each.
    #[test]
    fn no_depth_ends_the_process() {
        let deep = (0..10_000).fold(vec![OCTETS, 0], |inner, _| element(SEQUENCE, &inner));
        assert_eq!(good(&message_of(op::ENTRY, &deep, &[])), None);
    }
}
