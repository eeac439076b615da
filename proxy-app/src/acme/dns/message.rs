//! DNS messages (RFC 1035 §4, RFC 2136 §2): questions and updates are written, answers taken apart. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::acme::dns::name::DnsName;

/// Octets of a message's head.
pub(crate) const HEAD: usize = 12;
/// The class of the Internet, that of a record to delete, and any (RFC 2136 §2.5).
const IN: u16 = 1;
const NONE: u16 = 254;
pub(crate) const ANY: u16 = 255;
/// Bits of the head: an answer, by its server's own authority, cut off, one that should ask others.
const ANSWER: u16 = 1 << 15;
const AUTHORITATIVE: u16 = 1 << 10;
const TRUNCATED: u16 = 1 << 9;
const RECURSIVE: u16 = 1 << 8;
/// The kind of a message that changes a zone (RFC 2136 §2.2).
const UPDATE: u16 = 5 << 11;
const OPCODE: u16 = 0xf << 11;
/// The type of a signature over a message (RFC 8945 §4.2).
pub(crate) const TSIG: u16 = 250;
/// How long others may keep a record that stands for minutes, in seconds.
const TTL: u32 = 60;
/// Most records of an answer that are read.
const RECORDS_MAX: u16 = 512;
/// Most octets of a string in a record.
const STRING_MAX: usize = 255;

/// A type of records that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordType {
    /// An IPv4 address.
    A = 1,
    /// A name server of a zone.
    Ns = 2,
    /// Another name in whose place this one stands.
    Cname = 5,
    /// The begin of a zone.
    Soa = 6,
    /// Text.
    Txt = 16,
    /// An IPv6 address (RFC 3596).
    Aaaa = 28,
    /// Which authorities may issue certificates (RFC 8659).
    Caa = 257,
}

/// A change to the text at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextChange {
    /// One value more.
    Add,
    /// This value no longer; others stay.
    Delete,
}

/// What a record says, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordContent {
    /// An address.
    Address(IpAddr),
    /// A name server.
    Server(DnsName),
    /// Another name.
    Alias(DnsName),
    /// The begin of a zone.
    ZoneBegin,
    /// Text, its strings one behind the other.
    Text(Vec<u8>),
    /// Whether it must be understood, its tag in lower case, and its value.
    Caa {
        is_critical: bool,
        tag: String,
        value: String,
    },
    /// Anything else.
    Other,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DnsRecord {
    pub name: DnsName,
    pub content: RecordContent,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DnsAnswer {
    /// RFC 1035 §4.1.1, RFC 2136 §2.2; 0: there was no error.
    pub code: u8,
    /// There is more, over TCP.
    pub is_truncated: bool,
    /// The server answers for its own zone.
    pub is_authoritative: bool,
    pub answers: Vec<DnsRecord>,
    pub authorities: Vec<DnsRecord>,
}

/// The last record of a message, if it is a signature: what stands in front of it, and what it says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SignatureRecord {
    /// Where it begins.
    pub at: usize,
    /// The key.
    pub name: DnsName,
    pub algorithm: DnsName,
    /// Seconds since 1970.
    pub time: u64,
    pub fudge: u16,
    pub code: Vec<u8>,
    pub original_id: u16,
    pub error: u16,
    pub other: Vec<u8>,
}

/// The error of a name that does not exist.
pub(crate) const NO_NAME: u8 = 3;

/// A question; a server that is no authority for it asks others where this is wanted.
pub(crate) fn question(id: u16, name: &DnsName, kind: RecordType, asks_others: bool) -> Vec<u8> {
    let flags = if asks_others { RECURSIVE } else { 0 };
    let mut message = head(id, flags, [1, 0, 0]);
    message.extend_from_slice(name.wire());
    message.extend(numbers(&[kind as u16, IN]));
    message
}

/// A change to a zone (RFC 2136 §2). The text is cut into strings.
pub(crate) fn update(id: u16, zone: &DnsName, name: &DnsName, text: &str, change: TextChange) -> Vec<u8> {
    let mut message = head(id, UPDATE, [1, 0, 1]);
    message.extend_from_slice(zone.wire());
    message.extend(numbers(&[RecordType::Soa as u16, IN]));
    message.extend_from_slice(name.wire());
    let (class, ttl) = match change {
        TextChange::Add => (IN, TTL),
        TextChange::Delete => (NONE, 0),
    };
    message.extend(numbers(&[RecordType::Txt as u16, class]));
    message.extend(ttl.to_be_bytes());
    let strings: Vec<u8> = text.as_bytes().chunks(STRING_MAX).flat_map(string).collect();
    message.extend(numbers(&[strings.len() as u16]));
    message.extend(strings);
    message
}

fn head(id: u16, flags: u16, [questions, answers, authorities]: [u16; 3]) -> Vec<u8> {
    numbers(&[id, flags, questions, answers, authorities, 0])
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn string(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8], text].concat()
}

/// The answer to this message, taken apart. `None`: it is no answer to it, or no good message.
pub(crate) fn answer(asked: &[u8], message: &[u8]) -> Option<DnsAnswer> {
    let flags = number(message, 2)?;
    let is_answer = flags & ANSWER != 0 && flags & OPCODE == number(asked, 2)? & OPCODE;
    if !is_answer || number(message, 0)? != number(asked, 0)? {
        return None;
    }
    let mut answer = DnsAnswer {
        code: (flags & 0xf) as u8,
        is_truncated: flags & TRUNCATED != 0,
        is_authoritative: flags & AUTHORITATIVE != 0,
        answers: Vec::new(),
        authorities: Vec::new(),
    };
    let [questions, answers, authorities, _] = counts(message)?;
    let mut at = HEAD;
    match questions {
        // A server that could not read the message, or does not repeat the zone of an update.
        0 if answer.code != 0 || flags & OPCODE == UPDATE => {}
        1 => {
            let (name, behind) = DnsName::read(message, at)?;
            let (asked_name, asked_behind) = DnsName::read(asked, HEAD)?;
            if name != asked_name || message.get(behind..behind + 4)? != asked.get(asked_behind..asked_behind + 4)? {
                return None;
            }
            at = behind + 4;
        }
        _ => return None,
    }
    if answer.is_truncated {
        return Some(answer);
    }
    for (count, records) in [(answers, &mut answer.answers), (authorities, &mut answer.authorities)] {
        for _ in 0..count {
            let raw = RawRecord::read(message, at)?;
            at = raw.end;
            if raw.class == IN {
                let content = raw.content(message)?;
                records.push(DnsRecord {
                    name: raw.name,
                    content,
                });
            }
        }
    }
    Some(answer)
}

/// The signature of a message, if its last record is one.
pub(crate) fn signature(message: &[u8]) -> Option<SignatureRecord> {
    let [questions, answers, authorities, more] = counts(message)?;
    let mut at = HEAD;
    for _ in 0..questions {
        at = DnsName::read(message, at)?.1 + 4;
    }
    for _ in 0..answers + authorities + more.checked_sub(1)? {
        at = RawRecord::read(message, at)?.end;
    }
    let raw = RawRecord::read(message, at)?;
    // Its life is 0: §4.2.
    let is_one = raw.kind == TSIG && raw.class == ANY && message[raw.start - 6..raw.start - 2] == [0; 4];
    if !is_one || raw.end != message.len() {
        return None;
    }
    let (algorithm, at_time) = DnsName::read(message, raw.start)?;
    let fields = message.get(at_time..raw.end)?;
    let time = fields
        .get(..6)?
        .iter()
        .fold(0, |time, byte| time << 8 | u64::from(*byte));
    let code_end = 10 + usize::from(number(fields, 8)?);
    let other_end = code_end + 6 + usize::from(number(fields, code_end + 4)?);
    Some(SignatureRecord {
        at,
        name: raw.name,
        algorithm,
        time,
        fudge: number(fields, 6)?,
        code: fields.get(10..code_end)?.to_vec(),
        original_id: number(fields, code_end)?,
        error: number(fields, code_end + 2)?,
        other: fields
            .get(code_end + 6..other_end)
            .filter(|_| other_end == fields.len())?
            .to_vec(),
    })
}

/// A record whose content is not read yet.
struct RawRecord {
    name: DnsName,
    kind: u16,
    class: u16,
    /// Where its content begins and ends.
    start: usize,
    end: usize,
}

impl RawRecord {
    fn read(message: &[u8], at: usize) -> Option<Self> {
        let (name, at) = DnsName::read(message, at)?;
        let start = at + 10;
        let end = start + usize::from(number(message, at + 8)?);
        (end <= message.len()).then_some(Self {
            name,
            kind: number(message, at)?,
            class: number(message, at + 2)?,
            start,
            end,
        })
    }

    fn content(&self, message: &[u8]) -> Option<RecordContent> {
        const A: u16 = RecordType::A as u16;
        const NS: u16 = RecordType::Ns as u16;
        const CNAME: u16 = RecordType::Cname as u16;
        const SOA: u16 = RecordType::Soa as u16;
        const TXT: u16 = RecordType::Txt as u16;
        const AAAA: u16 = RecordType::Aaaa as u16;
        const CAA: u16 = RecordType::Caa as u16;
        let content = &message[self.start..self.end];
        let name = || {
            let (name, end) = DnsName::read(message, self.start)?;
            (end == self.end).then_some(name)
        };
        Some(match self.kind {
            A => RecordContent::Address(Ipv4Addr::from(<[u8; 4]>::try_from(content).ok()?).into()),
            AAAA => RecordContent::Address(Ipv6Addr::from(<[u8; 16]>::try_from(content).ok()?).into()),
            NS => RecordContent::Server(name()?),
            CNAME => RecordContent::Alias(name()?),
            SOA => RecordContent::ZoneBegin,
            TXT => RecordContent::Text(strings(content)?),
            CAA => caa(content)?,
            _ => RecordContent::Other,
        })
    }
}

fn strings(mut content: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    while let [length, rest @ ..] = content {
        let (string, others) = rest.split_at_checked(usize::from(*length))?;
        text.extend_from_slice(string);
        content = others;
    }
    Some(text)
}

/// RFC 8659 §4.1
fn caa(content: &[u8]) -> Option<RecordContent> {
    let [flags, length, rest @ ..] = content else {
        return None;
    };
    let (tag, value) = rest.split_at_checked(usize::from(*length))?;
    Some(RecordContent::Caa {
        is_critical: flags & 0x80 != 0,
        tag: String::from_utf8_lossy(tag).to_ascii_lowercase(),
        value: String::from_utf8_lossy(value).into_owned(),
    })
}

/// How many questions there are, answers, authorities, and other records.
fn counts(message: &[u8]) -> Option<[u16; 4]> {
    let counts = [
        number(message, 4)?,
        number(message, 6)?,
        number(message, 8)?,
        number(message, 10)?,
    ];
    let is_small = counts.iter().all(|count| *count <= RECORDS_MAX);
    is_small.then_some(counts)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    /// A record behind the question, whose name is a pointer to that of the question.
    fn record(kind: u16, class: u16, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0xc0, 12];
        record.extend(numbers(&[kind, class, 0, 60, content.len() as u16]));
        record.extend_from_slice(content);
        record
    }

    fn answered(asked: &[u8], flags: u16, counts: [u16; 3], records: &[Vec<u8>]) -> Vec<u8> {
        let mut message = asked.to_vec();
        message[2..4].copy_from_slice(&(ANSWER | flags).to_be_bytes());
        for (at, count) in counts.iter().enumerate() {
            message[6 + 2 * at..8 + 2 * at].copy_from_slice(&count.to_be_bytes());
        }
        message.extend(records.concat());
        message
    }

    #[test]
    fn questions_and_updates_are_those_of_the_rfcs() {
        let asked = question(0x1234, &name("a.example"), RecordType::Caa, true);
        assert_eq!(
            asked,
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x01\x01\x00\x01"
        );
        let [zone, place] = ["a.example", "x.a.example"].map(name);
        let zone_part = b"\x01a\x07example\x00\x00\x06\x00\x01";
        for (change, wire) in [
            (TextChange::Add, &b"\x00\x10\x00\x01\x00\x00\x00\x3c\x00\x04\x03abc"[..]),
            (TextChange::Delete, b"\x00\x10\x00\xfe\x00\x00\x00\x00\x00\x04\x03abc"),
        ] {
            let head = b"\x00\x07\x28\x00\x00\x01\x00\x00\x00\x01\x00\x00";
            let expected = [&head[..], zone_part, b"\x01x\x01a\x07example\x00", wire].concat();
            assert_eq!(update(7, &zone, &place, "abc", change), expected);
        }
    }

    #[test]
    fn an_answer_is_taken_apart_and_any_part_of_it_is_none() {
        let asked = question(7, &name("a.example"), RecordType::Txt, true);
        let records = [
            record(5, 1, b"\x01b\xc0\x0e"),
            record(16, 1, b"\x02ab\x00\x01c"),
            record(257, 1, b"\x80\x05ISSUEca.example"),
            record(1, 1, &[192, 0, 2, 1]),
            record(28, 1, &[0; 16]),
            record(99, 1, b"?"),
            record(1, 3, b"of another class"),
            record(6, 1, b"read no further"),
        ];
        let whole = answered(&asked, AUTHORITATIVE, [7, 1, 0], &records);
        let read = answer(&asked, &whole).unwrap();
        assert!(read.is_authoritative && !read.is_truncated && read.code == 0);
        let contents: Vec<RecordContent> = read.answers.into_iter().map(|record| record.content).collect();
        let caa = RecordContent::Caa {
            is_critical: true,
            tag: "issue".to_owned(),
            value: "ca.example".to_owned(),
        };
        let expected = [
            RecordContent::Alias(name("b.example")),
            RecordContent::Text(b"abc".to_vec()),
            caa,
            RecordContent::Address("192.0.2.1".parse().unwrap()),
            RecordContent::Address("::".parse().unwrap()),
            RecordContent::Other,
        ];
        assert_eq!(contents, expected);
        assert_eq!(read.authorities[0].content, RecordContent::ZoneBegin);
        for end in 0..whole.len() {
            assert!(answer(&asked, &whole[..end]).is_none(), "{end}");
        }
        // Any octet may be another one: nothing breaks.
        for at in 0..whole.len() {
            for byte in [0, 1, 0x3f, 0x40, 0xc0, 0xff] {
                let mut other = whole.clone();
                other[at] = byte;
                let _ = (answer(&asked, &other), signature(&other));
            }
        }
    }

    #[test]
    fn what_answers_something_else_is_no_answer() {
        let asked = question(7, &name("a.example"), RecordType::Txt, true);
        let whole = answered(&asked, 0, [0; 3], &[]);
        assert!(answer(&asked, &whole).is_some());
        for other in [
            question(8, &name("a.example"), RecordType::Txt, true),
            question(7, &name("b.example"), RecordType::Txt, true),
            question(7, &name("a.example"), RecordType::A, true),
            update(7, &name("a.example"), &name("a.example"), "", TextChange::Add),
        ] {
            assert!(answer(&other, &whole).is_none());
        }
        assert!(answer(&asked, &asked).is_none(), "a question is no answer");
        let cut = answered(&asked, TRUNCATED, [9, 9, 9], &[]);
        assert!(answer(&asked, &cut).unwrap().is_truncated);
    }

    #[test]
    fn wrong_contents_make_no_answer() {
        let asked = question(7, &name("a.example"), RecordType::Txt, true);
        for (kind, content) in [
            (1, &[1, 2, 3][..]),
            (28, &[0; 15]),
            (16, b"\x05abc"),
            (257, b"\x00\x09issue"),
            (257, b"\x00"),
            (5, b"\xc0\x0cx"),
            (2, b""),
        ] {
            let whole = answered(&asked, 0, [1, 0, 0], &[record(kind, 1, content)]);
            assert!(answer(&asked, &whole).is_none(), "{kind} {content:?}");
        }
    }
}
