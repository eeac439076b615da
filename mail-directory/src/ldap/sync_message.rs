//! The messages of a content synchronization (RFC 4533): what is asked, and what the server says. Pure.
//!
//! The library's own parsers of these controls panic where they are not as expected; here such a message is `None`.

use std::fmt;

use zeroize::Zeroizing;

use super::ber::{BOOLEAN, ENUMERATED, Elements, INTEGER, OCTETS, SEQUENCE, SET, element, group, integer};
use super::search_entry::SearchEntry;

/// The control that asks for it; a server that can do it lists this in its root entry.
pub(super) const SYNC_REQUEST: &str = "1.3.6.1.4.1.4203.1.9.1.1";
const SYNC_STATE: &[u8] = b"1.3.6.1.4.1.4203.1.9.1.2";
const SYNC_INFO: &[u8] = b"1.3.6.1.4.1.4203.1.9.1.4";
const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";

/// Longest cookie. OpenLDAP's has 45 bytes for each server that takes changes.
const MAX_COOKIE: usize = 16 * 1024;
/// Bytes of an `entryUUID`.
const UUID: usize = 16;

/// Tags of operations (RFC 4511 §4.2 to §4.13).
pub(super) mod op {
    pub(super) const BIND: u8 = 0x60;
    pub(in super::super) const BOUND: u8 = 0x61;
    pub(super) const SEARCH: u8 = 0x63;
    pub(in super::super) const ENTRY: u8 = 0x64;
    pub(in super::super) const DONE: u8 = 0x65;
    pub(in super::super) const REFERENCE: u8 = 0x73;
    pub(super) const EXTENDED: u8 = 0x77;
    pub(in super::super) const EXTENDED_DONE: u8 = 0x78;
    pub(in super::super) const INTERMEDIATE: u8 = 0x79;
    pub(in super::super) const CONTROLS: u8 = 0xa0;
}

/// A message of the server.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Which request it answers; 0: none.
    pub(super) id: u32,
    /// What it says.
    pub(super) what: Said,
}

/// What a message says.
#[derive(Debug)]
pub(super) enum Said {
    /// An entry, and what happened to it.
    Entry(SearchEntry, Option<StateOfEntry>),
    /// How the synchronization stands.
    Info(SyncInfo),
    /// The end of a search, or the answer to another request.
    Done(Outcome),
    /// Something that needs no answer.
    Nothing,
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// RFC 4511 §4.1.9.
    pub(super) code: u32,
    /// The server's words.
    pub(super) text: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "result {}", self.code)?;
        match self.text.is_empty() {
            true => Ok(()),
            false => write!(f, ", {}", self.text.escape_debug()),
        }
    }
}

/// The Sync State control of an entry (RFC 4533 §2.2).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StateOfEntry {
    /// What happened to it.
    pub(super) state: EntryState,
    /// How far the content has come with it.
    pub(super) cookie: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryState {
    /// It is as it was.
    Present,
    /// It is new.
    Add,
    /// It has changed.
    Modify,
    /// It is gone.
    Delete,
}

/// A Sync Info message (RFC 4533 §2.5).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyncInfo {
    /// How far the content has come.
    pub(super) cookie: Option<Vec<u8>>,
    /// What else it says.
    pub(super) kind: InfoKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InfoKind {
    /// Nothing else.
    Cookie,
    /// The end of a phase of the refresh, of the whole refresh if `is_last`.
    Phase {
        /// Entries that were not named are gone.
        by_presence: bool,
        /// From here on changes are told as they happen.
        is_last: bool,
    },
    /// So many entries, by number, that are still there, or are gone.
    Entries {
        /// Which of the two.
        are_gone: bool,
        /// How many.
        count: usize,
    },
}

/// What a message of a server says, as far as it can be read, in the words of this program.
pub fn said(message: &[u8]) -> Option<String> {
    parse(message).map(|incoming| format!("{incoming:?}"))
}

/// Takes a message apart: the content of its sequence.
pub(super) fn parse(message: &[u8]) -> Option<Incoming> {
    let mut parts = Elements::of(message);
    let id = parts.number(INTEGER)?;
    let (tag, content) = parts.any()?;
    let controls = match parts.is_empty() {
        true => None,
        false => parts.take_if(op::CONTROLS),
    };
    let what = match tag {
        op::ENTRY => Said::Entry(entry(content)?, state_of(controls)?),
        op::DONE | op::BOUND | op::EXTENDED_DONE => Said::Done(outcome(content)?),
        op::INTERMEDIATE => intermediate(content)?,
        op::REFERENCE => Said::Nothing,
        _ => return None,
    };
    Some(Incoming { id, what })
}

/// Values that are not UTF-8 are left out, as everywhere.
fn entry(content: &[u8]) -> Option<SearchEntry> {
    let mut parts = Elements::of(content);
    let dn = text(parts.take(OCTETS)?)?;
    let mut list = Elements::of(parts.take(SEQUENCE)?);
    let mut attributes = Vec::new();
    while !list.is_empty() {
        let mut attribute = Elements::of(list.take(SEQUENCE)?);
        let name = text(attribute.take(OCTETS)?)?;
        let mut set = Elements::of(attribute.take(SET)?);
        let mut values = Vec::new();
        while !set.is_empty() {
            values.extend(text(set.take(OCTETS)?));
        }
        attributes.push((name, values));
    }
    Some(SearchEntry::new(dn, attributes))
}

fn outcome(content: &[u8]) -> Option<Outcome> {
    let mut parts = Elements::of(content);
    let code = parts.number(ENUMERATED)?;
    parts.take(OCTETS)?;
    let text = String::from_utf8_lossy(parts.take(OCTETS)?).into_owned();
    Some(Outcome { code, text })
}

/// The outer `None`: there is such a control, but it cannot be read.
fn state_of(controls: Option<&[u8]>) -> Option<Option<StateOfEntry>> {
    let mut controls = Elements::of(controls.unwrap_or_default());
    while !controls.is_empty() {
        let mut control = Elements::of(controls.take(SEQUENCE)?);
        let name = control.take(OCTETS)?;
        control.flag_or(false)?;
        if name == SYNC_STATE {
            return state(control.take(OCTETS)?).map(Some);
        }
    }
    Some(None)
}

fn state(value: &[u8]) -> Option<StateOfEntry> {
    let mut parts = Elements::of(Elements::of(value).take(SEQUENCE)?);
    let state = match parts.number(ENUMERATED)? {
        0 => EntryState::Present,
        1 => EntryState::Add,
        2 => EntryState::Modify,
        3 => EntryState::Delete,
        _ => return None,
    };
    if parts.take(OCTETS)?.len() != UUID {
        return None;
    }
    let cookie = match parts.is_empty() {
        true => None,
        false => Some(cookie(parts.take(OCTETS)?)?),
    };
    Some(StateOfEntry { state, cookie })
}

fn intermediate(content: &[u8]) -> Option<Said> {
    let mut parts = Elements::of(content);
    let name = parts.take_if(0x80);
    let value = parts.take_if(0x81);
    match name == Some(SYNC_INFO) {
        true => info(value?).map(Said::Info),
        false => Some(Said::Nothing),
    }
}

fn info(value: &[u8]) -> Option<SyncInfo> {
    let (tag, content) = Elements::of(value).any()?;
    if tag == 0x80 {
        let cookie = Some(cookie(content)?);
        let kind = InfoKind::Cookie;
        return Some(SyncInfo { cookie, kind });
    }
    let mut parts = Elements::of(content);
    let cookie = match parts.take_if(OCTETS) {
        Some(found) => Some(cookie(found)?),
        None => None,
    };
    let kind = match tag {
        0xa1 | 0xa2 => InfoKind::Phase {
            by_presence: tag == 0xa2,
            is_last: parts.flag_or(true)?,
        },
        0xa3 => InfoKind::Entries {
            are_gone: parts.flag_or(false)?,
            count: count(parts.take(SET)?)?,
        },
        _ => return None,
    };
    Some(SyncInfo { cookie, kind })
}

/// How many numbers of entries there are.
fn count(set: &[u8]) -> Option<usize> {
    let (mut uuids, mut count) = (Elements::of(set), 0);
    while !uuids.is_empty() {
        if uuids.take(OCTETS)?.len() != UUID {
            return None;
        }
        count += 1;
    }
    Some(count)
}

fn cookie(bytes: &[u8]) -> Option<Vec<u8>> {
    (bytes.len() <= MAX_COOKIE).then(|| bytes.to_vec())
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// The simple bind (RFC 4511 §4.2); without a name the anonymous one.
pub(super) fn bind(id: u32, dn: &str, password: &str) -> Zeroizing<Vec<u8>> {
    let parts = [
        integer(INTEGER, 3),
        element(OCTETS, dn.as_bytes()),
        element(0x80, password.as_bytes()),
    ];
    let parts = parts.map(Zeroizing::new);
    let content = Zeroizing::new(parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>());
    let request = Zeroizing::new(element(op::BIND, &content));
    let whole = Zeroizing::new([&integer(INTEGER, id)[..], &request].concat());
    Zeroizing::new(element(SEQUENCE, &whole))
}

/// The request for TLS (RFC 4511 §4.14).
pub(super) fn start_tls(id: u32) -> Vec<u8> {
    let request = group(op::EXTENDED, &[element(0x80, START_TLS)]);
    group(SEQUENCE, &[integer(INTEGER, id), request])
}

/// The search for one entry, with these attributes.
pub(super) fn look(id: u32, dn: &str, attributes: &[&str]) -> Vec<u8> {
    let everything = element(0x87, b"objectClass");
    let search = search(dn, 0, everything, attributes);
    group(SEQUENCE, &[integer(INTEGER, id), search])
}

/// Asks for all entries of these classes below the root: what changed since the cookie, and then each change as it
/// happens. The server is to say so where it would have to send everything.
pub(super) fn synchronize(id: u32, classes: &[&str], attributes: &[&str], cookie: &str) -> Vec<u8> {
    let is = |class: &&str| {
        group(
            0xa3,
            &[element(OCTETS, b"objectClass"), element(OCTETS, class.as_bytes())],
        )
    };
    let any = group(0xa1, &classes.iter().map(is).collect::<Vec<_>>());
    let search = search("", 2, any, attributes);
    // Mode 3 is refreshAndPersist. No reloadHint: the server refuses a cookie that it cannot serve.
    let value = group(SEQUENCE, &[integer(ENUMERATED, 3), element(OCTETS, cookie.as_bytes())]);
    let control = group(
        SEQUENCE,
        &[
            element(OCTETS, SYNC_REQUEST.as_bytes()),
            element(BOOLEAN, &[0xff]),
            element(OCTETS, &value),
        ],
    );
    group(
        SEQUENCE,
        &[integer(INTEGER, id), search, group(op::CONTROLS, &[control])],
    )
}

fn search(base: &str, scope: u32, filter: Vec<u8>, attributes: &[&str]) -> Vec<u8> {
    let wanted: Vec<Vec<u8>> = attributes.iter().map(|name| element(OCTETS, name.as_bytes())).collect();
    group(
        op::SEARCH,
        &[
            element(OCTETS, base.as_bytes()),
            integer(ENUMERATED, scope),
            integer(ENUMERATED, 0),
            integer(INTEGER, 0),
            integer(INTEGER, 0),
            element(BOOLEAN, &[0]),
            filter,
            group(SEQUENCE, &wanted),
        ],
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ldap::ber;

    /// A message with a control, or none.
    fn message(id: u32, op: Vec<u8>, control: Option<(&[u8], Vec<u8>)>) -> Vec<u8> {
        let control = control.map(|(name, value)| {
            let one = group(SEQUENCE, &[element(OCTETS, name), element(OCTETS, &value)]);
            group(op::CONTROLS, &[one])
        });
        [Some(integer(INTEGER, id)), Some(op), control]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .concat()
    }

    fn an_entry() -> Vec<u8> {
        let value = group(
            SEQUENCE,
            &[
                integer(ENUMERATED, 2),
                element(OCTETS, &[7; UUID]),
                element(OCTETS, b"rid=000,csn=x"),
            ],
        );
        let attribute = group(
            SEQUENCE,
            &[
                element(OCTETS, b"zimbraId"),
                group(SET, &[element(OCTETS, b"a"), element(OCTETS, &[0xff])]),
            ],
        );
        let entry = group(
            op::ENTRY,
            &[element(OCTETS, b"uid=a,dc=test"), group(SEQUENCE, &[attribute])],
        );
        message(3, entry, Some((SYNC_STATE, value)))
    }

    fn an_info(value: Vec<u8>) -> Vec<u8> {
        let response = group(op::INTERMEDIATE, &[element(0x80, SYNC_INFO), element(0x81, &value)]);
        message(3, response, None)
    }

    fn infos() -> [(Vec<u8>, SyncInfo); 5] {
        let info = |cookie: Option<&[u8]>, kind| SyncInfo {
            cookie: cookie.map(<[u8]>::to_vec),
            kind,
        };
        let phase = |by_presence, is_last| InfoKind::Phase { by_presence, is_last };
        let ids = [element(OCTETS, &[1; UUID]), element(OCTETS, &[2; UUID])];
        [
            (element(0x80, b"c"), info(Some(b"c"), InfoKind::Cookie)),
            (
                group(0xa1, &[element(OCTETS, b"c")]),
                info(Some(b"c"), phase(false, true)),
            ),
            (group(0xa2, &[element(BOOLEAN, &[0])]), info(None, phase(true, false))),
            (
                group(0xa3, &[element(BOOLEAN, &[1]), group(SET, &ids)]),
                info(
                    None,
                    InfoKind::Entries {
                        are_gone: true,
                        count: 2,
                    },
                ),
            ),
            (
                group(0xa3, &[element(OCTETS, b"c"), group(SET, &ids[..1])]),
                info(
                    Some(b"c"),
                    InfoKind::Entries {
                        are_gone: false,
                        count: 1,
                    },
                ),
            ),
        ]
    }

    #[test]
    fn entries_come_with_what_happened_to_them() {
        let parsed = parse(&an_entry()).unwrap();
        assert_eq!(parsed.id, 3);
        let Said::Entry(entry, Some(state)) = parsed.what else {
            panic!("{parsed:?}")
        };
        assert_eq!(
            (entry.dn.as_str(), entry.values("zimbraid")),
            ("uid=a,dc=test", &["a".to_owned()][..])
        );
        assert_eq!(
            (state.state, state.cookie.as_deref()),
            (EntryState::Modify, Some(&b"rid=000,csn=x"[..]))
        );
    }

    #[test]
    fn all_kinds_of_information_are_known() {
        for (value, expected) in infos() {
            let Some(Incoming {
                what: Said::Info(found),
                ..
            }) = parse(&an_info(value))
            else {
                panic!("{expected:?}")
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_refusal_has_a_code_and_words() {
        let done = group(
            op::DONE,
            &[
                integer(ENUMERATED, 4096),
                element(OCTETS, b""),
                element(OCTETS, b"stale"),
            ],
        );
        let Some(Incoming {
            id: 9,
            what: Said::Done(outcome),
        }) = parse(&message(9, done, None))
        else {
            panic!()
        };
        assert_eq!((outcome.code, outcome.text.as_str()), (4096, "stale"));
    }

    #[test]
    fn requests_have_the_form_of_the_rfcs() {
        for (bytes, tags) in [
            (bind(1, "cn=a", "secret").to_vec(), vec![INTEGER, op::BIND]),
            (start_tls(1), vec![INTEGER, op::EXTENDED]),
            (look(2, "", &["a", "b"]), vec![INTEGER, op::SEARCH]),
            (
                synchronize(3, &["x", "y"], &["a"], "rid=000"),
                vec![INTEGER, op::SEARCH, op::CONTROLS],
            ),
        ] {
            let mut whole = Elements::of(&bytes);
            let mut parts = Elements::of(whole.take(SEQUENCE).unwrap());
            assert!(whole.is_empty());
            let found: Vec<u8> = std::iter::from_fn(|| parts.any().map(|(tag, _)| tag)).collect();
            assert_eq!(found, tags);
        }
    }

    /// Every message cut off anywhere, with any byte another one, and with any length.
    #[test]
    fn nonsense_is_no_message() {
        let seeds = infos().map(|(value, _)| an_info(value)).into_iter().chain([an_entry()]);
        for seed in seeds {
            for end in 0..seed.len() {
                let _ = parse(&seed[..end]);
            }
            for at in 0..seed.len() {
                for byte in 0..=255 {
                    let mut bytes = seed.clone();
                    bytes[at] = byte;
                    let _ = parse(&bytes);
                    let _ = ber::head(&bytes[at..]);
                }
            }
        }
        let deep = (0..10_000).fold(vec![4, 0], |inner, _| element(SEQUENCE, &inner));
        assert!(parse(&deep).is_none());
        let unknown = group(0x6f, &[]);
        assert!(parse(&message(1, unknown, None)).is_none());
        assert!(parse(&an_info(group(0xa3, &[group(SET, &[element(OCTETS, b"short")])]))).is_none());
        assert!(parse(&an_info(element(0x80, &vec![b'c'; MAX_COOKIE + 1]))).is_none());
    }
}
