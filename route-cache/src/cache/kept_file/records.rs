//! A kept route as bytes, and bytes as a kept route; pure.
//!
//! Numbers are written seven bits at a time, the lowest first; texts with their length before them. A server is
//! written in full once and by its number after that.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::known::KeptValue;
use crate::key::Key;
use crate::placement::{Placement, Special};

/// Longest text. A name has at most 512 bytes when it is typed, and some more when it is folded.
const MAX_TEXT: usize = 4096;

/// Bits of the first byte of a record: the kind of its key, and what follows.
const KEY_ID: u8 = 1;
const KEY_BARE: u8 = 2;
const SEE: u8 = 4;
const UNSURE: u8 = 8;
const SPECIAL: u8 = 16;
/// The account has the name that is the key.
const SAME: u8 = 32;
/// It says how many sessions it may have.
const SESSIONS: u8 = 64;

/// Bits of the first byte of what few accounts have.
const LOGIN: u8 = 1;
const EXTERNAL: u8 = 2;
const INTERNAL: u8 = 4;
const PIECEMEAL: u8 = 8;
const MAINTENANCE: u8 = 16;

/// What is kept under one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: Key,
    /// How old the answer is, in seconds.
    pub(super) age_secs: u64,
    /// Whether it may be believed once it is known what changed since.
    pub(super) sure: bool,
    pub(super) what: KeptValue,
}

/// Writes records.
#[derive(Default)]
pub(super) struct Encoder {
    hosts: HashMap<Arc<str>, u64>,
}

/// Reads records.
#[derive(Default)]
pub(super) struct Decoder {
    hosts: Vec<Arc<str>>,
}

impl Encoder {
    /// Adds a record. One with a text that is too long to be read again is left out; no account has such a name.
    pub(super) fn record(&mut self, out: &mut Vec<u8>, record: &Record) {
        if !texts(record).all(|text| text.len() <= MAX_TEXT) {
            return;
        }
        let key = record.key.text();
        out.push(flags(record));
        text(out, key);
        number(out, record.age_secs);
        match &record.what {
            KeptValue::See(account) => text(out, account),
            KeptValue::Here(placement) => self.placement(out, key, placement),
        }
    }

    fn placement(&mut self, out: &mut Vec<u8>, key: &Arc<str>, placement: &Placement) {
        if placement.account != *key {
            text(out, &placement.account);
        }
        self.host(out, placement.mail_host.as_ref());
        placement
            .max_sessions
            .iter()
            .for_each(|most| number(out, u64::from(*most)));
        if let Some(own) = &placement.special {
            special(out, own);
        }
    }

    /// Zero: none. One more than are known: a new one, in full.
    fn host(&mut self, out: &mut Vec<u8>, host: Option<&Arc<str>>) {
        let Some(host) = host else {
            return out.push(0);
        };
        let next = self.hosts.len() as u64 + 1;
        let known = self.hosts.get(host).copied();
        number(out, known.unwrap_or(next));
        if known.is_none() {
            self.hosts.insert(host.clone(), next);
            text(out, host);
        }
    }
}

fn texts(record: &Record) -> impl Iterator<Item = &str> {
    let (account, placement) = match &record.what {
        KeptValue::See(account) => (account, None),
        KeptValue::Here(placement) => (&placement.account, Some(placement)),
    };
    let special = placement.and_then(|placement| placement.special.as_deref());
    let servers = special.into_iter().flat_map(|own| &own.servers);
    [&**record.key.text(), account]
        .into_iter()
        .chain(placement.and_then(|placement| placement.mail_host.as_deref()))
        .chain(special.and_then(|own| own.login.as_deref()))
        .chain(servers.filter_map(|(host, _)| host.as_deref()))
}

fn flags(record: &Record) -> u8 {
    let kind = match &record.key {
        Key::Name(_) => 0,
        Key::Id(_) => KEY_ID,
        Key::Bare(_) => KEY_BARE,
    };
    let what = match &record.what {
        KeptValue::See(_) => SEE,
        KeptValue::Here(placement) => {
            bit(SPECIAL, placement.special.is_some())
                | bit(SAME, placement.account == *record.key.text())
                | bit(SESSIONS, placement.max_sessions.is_some())
        }
    };
    kind | what | bit(UNSURE, !record.sure)
}

fn bit(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

fn special(out: &mut Vec<u8>, own: &Special) {
    out.push(
        bit(LOGIN, own.login.is_some())
            | bit(EXTERNAL, own.external == Some(true))
            | bit(INTERNAL, own.external == Some(false))
            | bit(PIECEMEAL, own.piecemeal)
            | bit(MAINTENANCE, own.maintenance),
    );
    if let Some(login) = &own.login {
        text(out, login);
    }
    for (host, port) in &own.servers {
        text(out, host.as_deref().unwrap_or_default());
        number(out, port.map_or(0, |port| u64::from(port) + 1));
    }
}

pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes that are still to be read. All its functions return `None` for what no [`Encoder`] writes.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?)
            .ok()
            .filter(|length| *length <= MAX_TEXT)?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

impl Decoder {
    /// Takes the next record off `bytes`.
    pub(super) fn record(&mut self, bytes: &mut Bytes<'_>) -> Option<Record> {
        let flags = bytes.byte()?;
        let name: Arc<str> = bytes.text().filter(|name| !name.is_empty())?.into();
        let age_secs = bytes.number()?;
        let what = match flags & SEE {
            0 => KeptValue::Here(self.placement(flags, &name, bytes)?),
            _ => KeptValue::See(bytes.text()?.into()),
        };
        Some(Record {
            key: key_of(flags, name)?,
            age_secs,
            sure: flags & UNSURE == 0,
            what,
        })
    }

    fn placement(&mut self, flags: u8, name: &Arc<str>, bytes: &mut Bytes<'_>) -> Option<Placement> {
        Some(Placement {
            account: match flags & SAME {
                0 => bytes.text()?.into(),
                _ => name.clone(),
            },
            mail_host: self.host(bytes)?,
            max_sessions: match flags & SESSIONS {
                0 => None,
                _ => Some(u32::try_from(bytes.number()?).ok()?),
            },
            special: match flags & SPECIAL {
                0 => None,
                _ => Some(Box::new(read_special(bytes)?)),
            },
        })
    }

    /// `Some(None)`: none is named.
    fn host(&mut self, bytes: &mut Bytes<'_>) -> Option<Option<Arc<str>>> {
        let Some(place) = usize::try_from(bytes.number()?).ok()?.checked_sub(1) else {
            return Some(None);
        };
        if place == self.hosts.len() {
            self.hosts.push(bytes.text()?.into());
        }
        self.hosts.get(place).cloned().map(Some)
    }
}

/// The counterpart of [`flags`].
fn key_of(flags: u8, name: Arc<str>) -> Option<Key> {
    match flags & (KEY_ID | KEY_BARE) {
        0 => Some(Key::Name(name)),
        KEY_ID => Some(Key::Id(name)),
        KEY_BARE => Some(Key::Bare(name)),
        _ => None,
    }
}

fn read_special(bytes: &mut Bytes<'_>) -> Option<Special> {
    let flags = bytes.byte()?;
    let mut own = Special {
        login: match flags & LOGIN {
            0 => None,
            _ => Some(bytes.text()?.into()),
        },
        external: match flags & (EXTERNAL | INTERNAL) {
            0 => None,
            EXTERNAL => Some(true),
            INTERNAL => Some(false),
            _ => return None,
        },
        piecemeal: flags & PIECEMEAL != 0,
        maintenance: flags & MAINTENANCE != 0,
        ..Special::default()
    };
    for (host, port) in &mut own.servers {
        *host = Some(bytes.text()?).filter(|host| !host.is_empty()).map(Box::from);
        *port = match bytes.number()?.checked_sub(1) {
            None => None,
            Some(number) => Some(u16::try_from(number).ok()?),
        };
    }
    Some(own)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of each form.
    pub(in crate::cache::kept_file) fn records() -> Vec<Record> {
        let here = |account: &str, host: Option<&str>, special: Option<Special>| {
            KeptValue::Here(Placement {
                account: account.into(),
                mail_host: host.map(Arc::from),
                max_sessions: account.starts_with('b').then_some(300),
                special: special.map(Box::new),
            })
        };
        let external = |external| Special {
            login: Some("other".into()),
            external,
            servers: [
                (Some("h".into()), Some(993)),
                (None, Some(0)),
                (Some("x".into()), None),
                (None, None),
            ],
            piecemeal: external == Some(true),
            maintenance: external == Some(false),
            by_referral: false,
        };
        let name = |name: &str| Key::Name(name.into());
        let mut all = vec![
            (name("a@x.test"), here("a@x.test", Some("s1"), None)),
            (name("b@x.test"), here("b@x.test", Some("s2"), None)),
            (name("alias@x.test"), KeptValue::See("a@x.test".into())),
            (Key::Id("0-1".into()), KeptValue::See("ü@x.test".into())),
            (Key::Id("0-2".into()), here("0-2", Some("s1"), None)),
            (
                Key::Bare("c@[127.0.0.1;]".into()),
                here("c@x.test", None, Some(external(Some(true)))),
            ),
            (
                name("d@x.test"),
                here("d@x.test", Some("s2"), Some(external(Some(false)))),
            ),
            (name("e@x.test"), here("e@x.test", None, Some(external(None)))),
        ];
        let each = all.drain(..).zip([0, 1, 127, 128, 300_000, u64::MAX, 5, 6]);
        each.map(|((key, what), age_secs)| Record {
            key,
            age_secs,
            sure: age_secs % 2 == 0,
            what,
        })
        .collect()
    }

    fn encoded(records: &[Record]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::default(), Vec::new());
        records.iter().for_each(|record| encoder.record(&mut out, record));
        out
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let bytes = encoded(&records());
        let (mut decoder, mut left) = (Decoder::default(), Bytes(&bytes));
        for record in records() {
            assert_eq!(decoder.record(&mut left), Some(record));
        }
        assert!(left.0.is_empty());
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        let good = encoded(&records());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let (mut decoder, mut left) = (Decoder::default(), Bytes(&bytes));
                let read = std::iter::from_fn(|| decoder.record(&mut left)).count();
                assert!(read <= good.len());
            }
            let (mut decoder, mut left) = (Decoder::default(), Bytes(&good[..at]));
            assert!(std::iter::from_fn(|| decoder.record(&mut left)).count() < records().len());
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_left_out() {
        let long = Record {
            key: Key::Name("x".repeat(MAX_TEXT + 1).into()),
            age_secs: 0,
            sure: true,
            what: KeptValue::See("a".into()),
        };
        assert!(encoded(&[long]).is_empty());
    }
}
