//! Names of requests that log in, found in a body of any length while it passes, whatever else it is.
//!
//! It reads neither XML nor JSON: it decides about bodies that cannot be read. Text that quotes such a request is none,
//! since it must be escaped in both.

/// Longest name that is compared.
const NAME_MAX: usize = 32;
/// How much of the beginning is kept: an XML declaration stands there.
const BEGINNING: usize = 128;
/// Stands for what an escape stands for, where it is neither a letter nor a digit.
const NEUTRAL: u8 = 1;

/// Where the search stands in an escape of JSON.
#[derive(Debug, Clone, Copy)]
enum Escape {
    None,
    Begun,
    /// So many digits of `\u` have come, with this value.
    Digits(u8, u32),
}

/// The search in one body.
#[derive(Debug)]
pub(crate) struct LoginWords {
    names: &'static [&'static str],
    found: usize,
    beginning: Vec<u8>,
    escape: Escape,
    in_string: bool,
    /// The byte before the word that is being read.
    opener: u8,
    word: [u8; NAME_MAX],
    len: usize,
}

impl LoginWords {
    /// A search for requests of these names.
    pub(crate) fn new(names: &'static [&'static str]) -> Self {
        Self {
            names,
            found: 0,
            beginning: Vec::new(),
            escape: Escape::None,
            in_string: false,
            opener: 0,
            word: [0; NAME_MAX],
            len: 0,
        }
    }

    /// Looks at the next part.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        let room = BEGINNING.saturating_sub(self.beginning.len());
        self.beginning.extend_from_slice(&chunk[..chunk.len().min(room)]);
        for &byte in chunk {
            self.unescape(byte);
        }
    }

    /// How many there are.
    pub(crate) fn found(&self) -> usize {
        self.found
    }

    /// Whether letters are written in another way than in ASCII, so that no name can be found.
    pub(crate) fn is_foreign(&self) -> bool {
        let start = &self.beginning[..self.beginning.len().min(4)];
        let is_wide = start.starts_with(&[0xfe, 0xff]) || start.starts_with(&[0xff, 0xfe]) || start.contains(&0);
        // `<?xm` in EBCDIC.
        is_wide || start == [0x4c, 0x6f, 0xa7, 0x94] || self.declared().is_some_and(|name| !has_ascii(&name))
    }

    /// The encoding that an XML declaration names, in lower case.
    fn declared(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.beginning);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let declaration = text.strip_prefix("<?xml")?.split("?>").next()?;
        let (_, rest) = declaration.split_once("encoding")?;
        let value = rest.trim_start_matches([' ', '\t', '\r', '\n', '=']);
        let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''))?;
        Some(value[1..].split(quote).next()?.to_ascii_lowercase())
    }

    fn unescape(&mut self, byte: u8) {
        match self.escape {
            Escape::None if byte == b'\\' => self.escape = Escape::Begun,
            Escape::None => self.take(byte),
            Escape::Begun if byte == b'u' => self.escape = Escape::Digits(0, 0),
            Escape::Begun => self.unescaped(NEUTRAL),
            Escape::Digits(count, value) => match char::from(byte).to_digit(16) {
                Some(digit) if count == 3 => self.unescaped(letter(value * 16 + digit)),
                Some(digit) => self.escape = Escape::Digits(count + 1, value * 16 + digit),
                None => self.unescaped(NEUTRAL),
            },
        }
    }

    fn unescaped(&mut self, byte: u8) {
        self.escape = Escape::None;
        self.take(byte);
    }

    fn take(&mut self, byte: u8) {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | 0x80..) {
            if let Some(place) = self.word.get_mut(self.len) {
                *place = byte;
            }
            self.len = (self.len + 1).min(NAME_MAX + 1);
            return;
        }
        let is_prefix = self.opener == b'<' && byte == b':';
        let is_whole = match self.opener {
            b'<' => matches!(byte, b'>' | b'/' | b' ' | b'\t' | b'\r' | b'\n'),
            b'"' | b'\'' => byte == self.opener,
            _ => byte == b':' && !self.in_string,
        };
        self.found += usize::from(is_whole && self.is_one());
        self.in_string ^= byte == b'"';
        self.len = 0;
        if !is_prefix {
            self.opener = byte;
        }
    }

    fn is_one(&self) -> bool {
        let word = self.word.get(..self.len).unwrap_or_default();
        self.names.iter().any(|name| name.as_bytes() == word)
    }
}

/// What an escape of JSON stands for; quotes that are escaped quote nothing.
fn letter(value: u32) -> u8 {
    let letter = u8::try_from(value).unwrap_or(NEUTRAL);
    if letter.is_ascii_alphanumeric() {
        letter
    } else {
        NEUTRAL
    }
}

/// Whether ASCII letters are written as such in an encoding.
fn has_ascii(encoding: &str) -> bool {
    matches!(encoding, "utf-8" | "utf8" | "us-ascii" | "ascii" | "latin1")
        || ["iso-8859-", "windows-125"]
            .iter()
            .any(|family| encoding.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(text: &[u8], at_once: usize) -> (usize, bool) {
        let mut words = LoginWords::new(&["AuthRequest"]);
        text.chunks(at_once).for_each(|chunk| words.push(chunk));
        (words.found(), words.is_foreign())
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        for (text, found) in [
            (r#"{"Body":{"AuthRequest":{}}}"#, 1),
            (r#"{"Body":{"\u0041uthReques\u0074":{}}}"#, 1),
            ("{Body:{AuthRequest:{}}}", 1),
            ("{'Body':{'AuthRequest':{}}}", 1),
            ("<Envelope><Body><AuthRequest>", 1),
            ("<a:Envelope><a:Body><a:AuthRequest xmlns:a='b'>", 1),
            ("<AuthRequest/><x:AuthRequest\n></x:AuthRequest>", 2),
            // What only speaks of them.
            (
                r#"{"content":"send \"AuthRequest\" and \u0022AuthRequest\u0022, <b>AuthRequest</b>"}"#,
                0,
            ),
            (r#"{"content":"AuthRequest: what is it?"}"#, 0),
            ("<content>&lt;AuthRequest&gt; urn:AuthRequest </content>", 0),
            ("<DelegateAuthRequest/><AuthRequestX/><XAuthRequest/>", 0),
            ("</AuthRequest>", 0),
        ] {
            for at_once in [1, 7, 1000] {
                assert_eq!(search(text.as_bytes(), at_once), (found, false), "{text}");
            }
        }
    }

    #[test]
    fn other_alphabets_are_noticed() {
        let wide: Vec<u8> = "<Envelope>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (text, foreign) in [
            (wide.as_slice(), true),
            (&[0xff, 0xfe, b'<', 0], true),
            (b"<?xml version=\"1.0\" encoding='UTF-7'?><a/>", true),
            (b"<?xml version=\"1.0\" encoding = \"cp037\"?><a/>", true),
            (b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a/>", false),
            (b"\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><a/>", false),
            (b"<?xml version=\"1.0\"?><a/>", false),
            (b"{}", false),
            (b"", false),
        ] {
            assert_eq!(search(text, 3).1, foreign, "{text:?}");
        }
    }
}
