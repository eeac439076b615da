//! memcached's text protocol: commands out, replies in. Pure functions; no socket, no time.
//!
//! Strict on purpose. A reply that is not exactly what its command allows may belong to another one, and a client
//! that went on reading would return one user's answer to another (CVE-2022-27924).

/// Longest value that is read. An address is shorter than 64 bytes; a longer value is not from a proxy.
pub const MAX_VALUE: usize = 1024;
/// Longest line of a reply: `VALUE`, a key of 64 letters and three numbers, with room to spare.
const MAX_LINE: usize = 256;

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The value under a key.
    Get {
        /// The key on the wire.
        key: String,
    },
    /// Store a value.
    Set {
        /// The key on the wire.
        key: String,
        /// Life in seconds.
        ttl: u64,
        /// The value.
        value: String,
    },
    /// Remove a value.
    Delete {
        /// The key on the wire.
        key: String,
    },
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The value that was asked for.
    Value(Vec<u8>),
    /// There is none.
    Nothing,
    /// Stored or removed, or there was nothing to remove.
    Done,
}

/// The bytes are not an answer to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Babble;

impl Command {
    /// Appends the command to `out`. Keys are hex and values addresses: nothing needs quoting.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let text = match self {
            Self::Get { key } => format!("get {key}\r\n"),
            Self::Set { key, ttl, value } => format!("set {key} 0 {ttl} {}\r\n{value}\r\n", value.len()),
            Self::Delete { key } => format!("delete {key}\r\n"),
        };
        out.extend_from_slice(text.as_bytes());
    }

    /// Reads the reply to this command from the beginning of `bytes`: the reply and its length, or `None` if it is
    /// not complete.
    ///
    /// # Errors
    /// This is no answer to this command. Nothing that comes later on this connection can be believed.
    pub fn reply(&self, bytes: &[u8]) -> Result<Option<(Reply, usize)>, Babble> {
        let Some(line) = line(bytes)? else { return Ok(None) };
        let length = line.len() + 2;
        let reply = match (self, line) {
            (Self::Get { .. }, b"END") => Reply::Nothing,
            (Self::Get { key }, line) => return value(key, line, bytes),
            (Self::Set { .. }, b"STORED" | b"NOT_STORED") => Reply::Done,
            (Self::Delete { .. }, b"DELETED" | b"NOT_FOUND") => Reply::Done,
            _ => return Err(Babble),
        };
        Ok(Some((reply, length)))
    }
}

/// The first line, without its end.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Babble> {
    let head = &bytes[..bytes.len().min(MAX_LINE)];
    match head.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => Ok(Some(&head[..end])),
        None if bytes.len() >= MAX_LINE => Err(Babble),
        None => Ok(None),
    }
}

/// `VALUE <key> <flags> <length>`, the value, `END`.
fn value(key: &str, line: &[u8], bytes: &[u8]) -> Result<Option<(Reply, usize)>, Babble> {
    let text = std::str::from_utf8(line).map_err(|_| Babble)?;
    let rest = text
        .strip_prefix("VALUE ")
        .and_then(|rest| rest.strip_prefix(key))
        .ok_or(Babble)?;
    let (flags, length) = rest
        .strip_prefix(' ')
        .and_then(|rest| rest.split_once(' '))
        .ok_or(Babble)?;
    let length = number(length)
        .filter(|length| *length <= MAX_VALUE as u64)
        .ok_or(Babble)? as usize;
    number(flags).ok_or(Babble)?;
    const END: &[u8] = b"\r\nEND\r\n";
    let start = line.len() + 2;
    let data = &bytes[start..];
    let end = &data[data.len().min(length)..];
    match end.len() < END.len() {
        true if END.starts_with(end) => Ok(None),
        false if end.starts_with(END) => Ok(Some((
            Reply::Value(data[..length].to_vec()),
            start + length + END.len(),
        ))),
        _ => Err(Babble),
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get() -> Command {
        Command::Get { key: "k1".to_owned() }
    }

    fn set() -> Command {
        Command::Set {
            key: "k1".to_owned(),
            ttl: 3600,
            value: "10.0.0.11:7993".to_owned(),
        }
    }

    fn delete() -> Command {
        Command::Delete { key: "k1".to_owned() }
    }

    #[test]
    fn commands_are_exact() {
        let mut out = Vec::new();
        for command in [get(), set(), delete()] {
            command.encode(&mut out);
        }
        let text = "get k1\r\nset k1 0 3600 14\r\n10.0.0.11:7993\r\ndelete k1\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn replies_are_read_at_every_cut() {
        let value = |text: &str| Reply::Value(text.as_bytes().to_vec());
        for (command, bytes, expected) in [
            (get(), "END\r\n", Reply::Nothing),
            (get(), "VALUE k1 0 3\r\na:1\r\nEND\r\n", value("a:1")),
            (get(), "VALUE k1 12 0\r\n\r\nEND\r\n", value("")),
            (get(), "VALUE k1 0 5\r\nEND\r\n\r\nEND\r\n", value("END\r\n")),
            (set(), "STORED\r\n", Reply::Done),
            (set(), "NOT_STORED\r\n", Reply::Done),
            (delete(), "DELETED\r\n", Reply::Done),
            (delete(), "NOT_FOUND\r\n", Reply::Done),
        ] {
            let bytes = bytes.as_bytes();
            for cut in 0..bytes.len() {
                assert_eq!(command.reply(&bytes[..cut]), Ok(None), "{cut} of {bytes:?}");
            }
            let more = [bytes, b"VALUE"].concat();
            assert_eq!(command.reply(&more), Ok(Some((expected, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_answer_to_the_command_is_babble() {
        let long = format!("VALUE k1 0 {}\r\n", MAX_VALUE + 1);
        let endless = "x".repeat(MAX_LINE);
        for (command, bytes) in [
            (get(), "VALUE k2 0 3\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k11 0 3\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k1 0 3\r\na:1\r\nVALUE k1 0 3\r\n"),
            (get(), "VALUE k1 0 2\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k1 0 3 7\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k1 0 +3\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k1 x 3\r\na:1\r\nEND\r\n"),
            (get(), "VALUE k1 0\r\n"),
            (get(), "STORED\r\n"),
            (get(), "SERVER_ERROR out of memory\r\n"),
            (get(), "ERROR\r\n"),
            (get(), "\r\n"),
            (get(), long.as_str()),
            (get(), endless.as_str()),
            (set(), "END\r\n"),
            (set(), "SERVER_ERROR out of memory storing object\r\n"),
            (delete(), "STORED\r\n"),
            (delete(), "\u{fffd}\r\n"),
        ] {
            assert_eq!(command.reply(bytes.as_bytes()), Err(Babble), "{command:?} {bytes:?}");
        }
    }
}
