//! The few parts of BER that LDAP uses (RFC 4511 §5.1): definite lengths, tags of one byte. Pure.
//!
//! Reading takes nothing for granted: what is cut off or does not fit gives `None`, and nothing is copied or nested
//! before somebody asks for it.

/// `BOOLEAN`
pub(super) const BOOLEAN: u8 = 0x01;
/// `INTEGER`
pub(super) const INTEGER: u8 = 0x02;
/// `OCTET STRING`
pub(super) const OCTETS: u8 = 0x04;
/// `ENUMERATED`
pub(super) const ENUMERATED: u8 = 0x0a;
/// `SEQUENCE`
pub(super) const SEQUENCE: u8 = 0x30;
/// `SET`
pub(super) const SET: u8 = 0x31;

/// Bytes of a length in its long form: four count to four gigabytes.
const LENGTH_BYTES: usize = 4;

/// The tag of an element, how long its head is, and how long its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Its first byte.
    pub(super) tag: u8,
    /// Bytes before the content.
    pub(super) len: usize,
    /// Bytes of the content.
    pub(super) content: usize,
}

/// What the bytes begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// An element; its content may not be there yet.
    With(Head),
    /// There are too few bytes to say.
    TooShort,
    /// This is no element.
    Nonsense,
}

/// The element at the beginning of some bytes.
pub(super) fn head(bytes: &[u8]) -> Begins {
    let [tag, first, rest @ ..] = bytes else {
        return Begins::TooShort;
    };
    // Tags of more than one byte, and the indefinite length.
    if tag & 0x1f == 0x1f || *first == 0x80 {
        return Begins::Nonsense;
    }
    let (tag, more) = (*tag, usize::from(first & 0x7f));
    if *first < 0x80 {
        return Begins::With(Head {
            tag,
            len: 2,
            content: more,
        });
    }
    if more > LENGTH_BYTES {
        return Begins::Nonsense;
    }
    let Some(length) = rest.get(..more) else {
        return Begins::TooShort;
    };
    let content = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    Begins::With(Head {
        tag,
        len: 2 + more,
        content,
    })
}

/// Elements one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// Those of this content.
    pub(super) fn of(content: &'a [u8]) -> Self {
        Self(content)
    }

    /// The next one: its tag and its content.
    pub(super) fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let Begins::With(head) = head(self.0) else {
            return None;
        };
        let content = self.0.get(head.len..head.len.checked_add(head.content)?)?;
        self.0 = &self.0[head.len + head.content..];
        Some((head.tag, content))
    }

    /// The next one, which must have this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any()
            .filter(|(found, _)| *found == tag)
            .map(|(_, content)| content)
    }

    /// The next one if it has this tag; else it stays.
    pub(super) fn take_if(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let content = ahead.take(tag)?;
        *self = ahead;
        Some(content)
    }

    /// The next one, an integer.
    pub(super) fn number(&mut self, tag: u8) -> Option<u32> {
        number(self.take(tag)?)
    }

    /// The next one if it is a `BOOLEAN`, else the default.
    pub(super) fn flag_or(&mut self, default: bool) -> Option<bool> {
        match self.take_if(BOOLEAN) {
            None => Some(default),
            Some([value]) => Some(*value != 0),
            Some(_) => None,
        }
    }

    /// Whether there are no more.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A number that is not negative and fits.
fn number(content: &[u8]) -> Option<u32> {
    let digits = match content {
        [0, rest @ ..] => rest,
        [first, ..] if *first < 0x80 => content,
        _ => return None,
    };
    let fits = digits.len() <= 4;
    fits.then(|| digits.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// An element.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let mut all = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short @ ..0x80) => all.push(short),
        _ => {
            let digits = &length[length.len() - LENGTH_BYTES..];
            all.push(0x80 | LENGTH_BYTES as u8);
            all.extend_from_slice(digits);
        }
    }
    all.extend_from_slice(content);
    all
}

/// Some elements as the content of another one.
pub(super) fn group(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    element(tag, &parts.concat())
}

/// A number.
pub(super) fn integer(tag: u8, number: u32) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(3);
    let digits = &bytes[zeros..];
    // Without a zero before it, it would be negative.
    match digits[0] < 0x80 {
        true => element(tag, digits),
        false => element(tag, &[&[0], digits].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for number in [0, 1, 127, 128, 255, 256, 65_535, 4096, u32::MAX] {
            let bytes = integer(INTEGER, number);
            assert_eq!(Elements::of(&bytes).number(INTEGER), Some(number));
        }
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; length];
            let bytes = element(OCTETS, &content);
            let mut elements = Elements::of(&bytes);
            assert_eq!(elements.take(OCTETS), Some(&content[..]));
            assert!(elements.is_empty());
        }
    }

    #[test]
    fn what_does_not_fit_is_no_element() {
        for (bytes, expected) in [
            (&[][..], Begins::TooShort),
            (&[0x30], Begins::TooShort),
            (&[0x30, 0x82, 1], Begins::TooShort),
            (&[0x30, 0x80, 0, 0], Begins::Nonsense),
            (&[0x1f, 0x01, 0], Begins::Nonsense),
            (&[0x30, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1], Begins::Nonsense),
        ] {
            assert_eq!(head(bytes), expected, "{bytes:?}");
            assert_eq!(Elements::of(bytes).any(), None);
        }
        assert_eq!(Elements::of(&[0x04, 0x03, 1, 2]).any(), None, "its end is missing");
        assert_eq!(Elements::of(&[0x04, 0x84, 0xff, 0xff, 0xff, 0xff, 1]).any(), None);
        for odd in [&[][..], &[0xff], &[1, 2, 3, 4, 5], &[0, 1, 2, 3, 4, 5]] {
            assert_eq!(number(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn what_may_be_missing_stays_where_it_is() {
        let bytes = [integer(INTEGER, 5), element(BOOLEAN, &[0xff])].concat();
        let mut elements = Elements::of(&bytes);
        assert_eq!(elements.take_if(OCTETS), None);
        assert_eq!(elements.flag_or(true), Some(true));
        assert_eq!(elements.number(INTEGER), Some(5));
        assert_eq!(elements.flag_or(false), Some(true));
        assert_eq!(elements.flag_or(false), Some(false));
    }
}
