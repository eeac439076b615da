//! Names as they stand in DNS messages (RFC 1035 §3.1). Pure.

use std::fmt;

/// Most octets of a name.
const NAME_MAX: usize = 255;
/// Most letters of a label.
const LABEL_MAX: usize = 63;
/// The two bits of a pointer to an earlier place (§4.1.4).
const POINTER: u8 = 0xc0;

/// A name in wire format: labels with their lengths, the root at the end, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DnsName(Vec<u8>);

impl DnsName {
    /// A name as people write it. `None`: no name is so long, or has such letters.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let is_label = (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic());
            if !is_label {
                return None;
            }
            wire.push(u8::try_from(label.len()).ok()?);
            wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        wire.push(0);
        (wire.len() <= NAME_MAX).then_some(Self(wire))
    }

    /// The name that begins here in a message. Returns it with the place behind it.
    pub(crate) fn read(message: &[u8], start: usize) -> Option<(Self, usize)> {
        let (mut wire, mut at, mut behind) = (Vec::new(), start, None);
        // A pointer leads to an earlier place each time, so this ends.
        let mut earliest = start;
        loop {
            let length = *message.get(at)?;
            match length & POINTER {
                0 if length == 0 => {
                    wire.push(0);
                    return (wire.len() <= NAME_MAX).then(|| (Self(wire), behind.unwrap_or(at + 1)));
                }
                0 => {
                    let end = at + 1 + usize::from(length);
                    wire.push(length);
                    wire.extend(message.get(at + 1..end)?.iter().map(u8::to_ascii_lowercase));
                    if wire.len() >= NAME_MAX {
                        return None;
                    }
                    at = end;
                }
                POINTER => {
                    let place = usize::from(length & !POINTER) << 8 | usize::from(*message.get(at + 1)?);
                    behind.get_or_insert(at + 2);
                    if place >= earliest {
                        return None;
                    }
                    (earliest, at) = (place, place);
                }
                _ => return None,
            }
        }
    }

    /// In wire format.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The name above this one; none above the root.
    pub(crate) fn parent(&self) -> Option<Self> {
        let first = usize::from(*self.0.first()?);
        (first > 0).then(|| Self(self.0[first + 1..].to_vec()))
    }

    /// Whether it is this name, or one below it.
    pub(crate) fn is_within(&self, zone: &Self) -> bool {
        let mut name = Some(self.clone());
        while let Some(here) = name {
            if here == *zone {
                return true;
            }
            name = here.parent();
        }
        false
    }
}

impl fmt::Display for DnsName {
    /// Without the final dot; letters that could break a line as `\ddd` (§5.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut is_first = true;
        while let Some((length, behind)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, others) = behind.split_at(usize::from(*length));
            if !std::mem::take(&mut is_first) {
                f.write_str(".")?;
            }
            for byte in label {
                match byte.is_ascii_graphic() && !b".\\".contains(byte) {
                    true => write!(f, "{}", char::from(*byte))?,
                    false => write!(f, "\\{byte:03}")?,
                }
            }
            rest = others;
        }
        match is_first {
            true => f.write_str("."),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_read_and_compared() {
        let name = DnsName::parse("_acme-challenge.A.example.").unwrap();
        assert_eq!(name.to_string(), "_acme-challenge.a.example");
        let zone = DnsName::parse("a.example").unwrap();
        assert!(name.is_within(&zone) && zone.is_within(&zone) && !zone.is_within(&name));
        assert!(!DnsName::parse("ba.example").unwrap().is_within(&zone));
        assert_eq!(zone.parent().unwrap().parent().unwrap().to_string(), ".");
        assert!(zone.parent().unwrap().parent().unwrap().parent().is_none());
        let long = format!(
            "{}.{}.{}.{}",
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61)
        );
        assert!(DnsName::parse(&long).is_some());
        for wrong in [
            "",
            ".",
            "a..b",
            "a b",
            "ä.example",
            &"a".repeat(64),
            &format!("{long}e"),
        ] {
            assert!(DnsName::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn pointers_lead_back_and_end() {
        // "b.example" at 0, "a" + pointer to it at 11, a pointer to that at 15.
        let message = b"\x01b\x07example\x00\x01a\xc0\x00\xc0\x0b";
        let (name, behind) = DnsName::read(message, 11).unwrap();
        assert_eq!((name.to_string().as_str(), behind), ("a.b.example", 15));
        let (name, behind) = DnsName::read(message, 15).unwrap();
        assert_eq!((name.to_string().as_str(), behind), ("a.b.example", 17));
        // To itself, ahead, into nothing, of an unknown kind, cut off.
        for wrong in [
            &b"\xc0\x00"[..],
            b"\xc0\x02\x00",
            b"\xc0\xff",
            b"\x41a\x00",
            b"\x05abc",
            b"\xc0",
            b"",
        ] {
            assert!(DnsName::read(wrong, 0).is_none(), "{wrong:?}");
        }
        // A circle of two.
        assert!(DnsName::read(b"\x01a\xc0\x04\x01b\xc0\x00", 4).is_none());
        // Longer than a name may be, by pointers.
        let mut long = vec![63];
        long.extend([b'a'; 63]);
        long.push(0);
        for at in 0..4 {
            let to = if at == 0 { 0 } else { 65 + (at - 1) * 66 };
            long.push(63);
            long.extend([b'a'; 63]);
            long.extend([0xc0 | (to >> 8) as u8, to as u8]);
        }
        assert!(DnsName::read(&long, 65 + 66 * 2).is_none());
        assert!(DnsName::read(&long, 65 + 66).is_some());
        assert_eq!(DnsName::read(b"\x03a\n.\x00", 0).unwrap().0.to_string(), "a\\010\\046");
    }
}
