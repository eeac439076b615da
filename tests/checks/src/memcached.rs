//! Replies of memcached, which has no password: whoever reaches it may have written them.

use route_cache::memcached::wire::{Command, MAX_VALUE, Reply};

/// Longest head of a reply of memcached, and what stands around a value.
const AROUND_VALUE: usize = 256 + 16;

/// A reply is what it is however its bytes arrive, and nothing unbounded is waited for.
pub(crate) fn check(bytes: &[u8]) {
    let key = "k1".to_owned();
    let commands = [
        Command::Get { key: key.clone() },
        Command::Set {
            key: key.clone(),
            ttl: 60,
            value: "10.0.0.1:7993".to_owned(),
        },
        Command::Delete { key },
    ];
    for command in commands {
        match command.reply(bytes) {
            Ok(Some((reply, length))) => {
                assert!(length <= bytes.len());
                assert_eq!(command.reply(&bytes[..length]), Ok(Some((reply.clone(), length))));
                for cut in 0..length {
                    assert_eq!(command.reply(&bytes[..cut]), Ok(None));
                }
                if let Reply::Value(value) = reply {
                    assert!(value.len() <= MAX_VALUE && matches!(command, Command::Get { .. }));
                }
            }
            Ok(None) => assert!(bytes.len() < MAX_VALUE + AROUND_VALUE),
            Err(babble) => assert_eq!(command.reply(&[bytes, b"\r\nEND\r\n"].concat()), Err(babble)),
        }
    }
}
