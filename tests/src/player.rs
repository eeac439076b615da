//! Plays a dialogue written as lines against a server.
//!
//! ```text
//! S: * OK …                 the next line must be this; … stands for anything
//! C: a1 CAPABILITY          sends the line
//! S~ a1 OK …                lines are skipped until this one comes
//! C- a2 LOGIN bob {4        sends without line end; \r \n \0 \e \\ \xNN are bytes
//! E:                        the server must close now
//! ```
//! Anything else is a comment.

use anyhow::{Context, Result, ensure};

use crate::wire::Wire;

/// Plays `dialogue` on a connection. An error names the line at which it went wrong.
pub fn play(wire: &mut Wire, dialogue: &str) -> Result<()> {
    dialogue
        .lines()
        .map(str::trim_start)
        .try_for_each(|line| play_line(wire, line).with_context(|| format!("at {line:?}")))
}

fn play_line(wire: &mut Wire, line: &str) -> Result<()> {
    let text = line.get(2..).map_or("", |t| t.strip_prefix(' ').unwrap_or(t));
    match line.get(..2) {
        Some("C:") => wire.send([bytes(text), b"\r\n".to_vec()].concat()),
        Some("C-") => wire.send(bytes(text)),
        Some("S:") => {
            let said = wire.line()?;
            ensure!(fits(text, &said), "the server said {said:?}");
            Ok(())
        }
        Some("S~") => skip_to(wire, text),
        Some("E:") => {
            let rest = wire.rest()?;
            ensure!(
                rest.is_empty(),
                "before its end the server said {:?}",
                String::from_utf8_lossy(&rest)
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

fn skip_to(wire: &mut Wire, pattern: &str) -> Result<()> {
    let mut skipped = Vec::new();
    loop {
        let said = wire.line().with_context(|| format!("after {skipped:?}"))?;
        if fits(pattern, &said) {
            return Ok(());
        }
        skipped.push(said);
    }
}

/// Whether the text is as the pattern, in which `…` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('…') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('…').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}

fn bytes(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((before, escaped)) = rest.split_once('\\') {
        out.extend_from_slice(before.as_bytes());
        let (byte, length) = escape(escaped);
        out.push(byte);
        rest = &escaped[length.min(escaped.len())..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// The byte that is meant, and how many characters behind the backslash mean it.
fn escape(text: &str) -> (u8, usize) {
    match text.as_bytes().first() {
        Some(b'r') => (b'\r', 1),
        Some(b'n') => (b'\n', 1),
        Some(b'0') => (0, 1),
        Some(b'e') => (0x1B, 1),
        Some(b'x') => (
            text.get(1..3)
                .and_then(|h| u8::from_str_radix(h, 16).ok())
                .unwrap_or(b'x'),
            3,
        ),
        _ => (b'\\', 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_escapes() {
        assert!(fits("a1 OK …", "a1 OK done"));
        assert!(fits("* …PLAIN… x", "* AUTH=PLAIN ID x"));
        assert!(!fits("a1 OK …", "a1 NO"));
        assert_eq!(bytes(r"a\r\n\0\x41\\b"), b"a\r\n\0A\\b");
    }
}
