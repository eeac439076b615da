//! The grammar of the few IMAP commands that a client may say before login.
//!
//! A command comes here already cut ([`crate::line::Framer`]), or cut off where its sender waits for the invitation
//! of a literal. Lists do not nest in anything known here, so nothing recurses.

use mail_directory::Secret;

use crate::line;
use crate::machine::IdFields;

/// Characters of a tag; Dovecot's limit. Tags are echoed, so they must not be a way to make us send much.
const MAX_TAG: usize = 126;

/// Pairs in an `ID` list (RFC 2971 section 3.3).
const MAX_ID_PAIRS: usize = 30;

/// Octets of an `ID` value (RFC 2971 section 3.3).
const MAX_ID_VALUE: usize = 1024;

/// A tag that may be echoed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// ```text
    /// tag             = 1*<any ASTRING-CHAR except "+">       ; RFC 9051 section 9
    /// ASTRING-CHAR    = ATOM-CHAR / "]"
    /// ```
    /// Anything else is never echoed: the peer may speak HTTP, or make a browser do so.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let good = |byte: &u8| byte.is_ascii_graphic() && !b"(){%*\"\\+".contains(byte);
        let valid = (1..=MAX_TAG).contains(&text.len()) && text.iter().all(good);
        valid.then(|| Self(text.iter().copied().map(char::from).collect()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The commands of the not authenticated state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Capability,
    Noop,
    Logout,
    StartTls,
    Id,
    Login,
    Authenticate,
    Unknown,
}

impl Verb {
    const ALL: [(&'static str, Self); 7] = [
        ("CAPABILITY", Self::Capability),
        ("NOOP", Self::Noop),
        ("LOGOUT", Self::Logout),
        ("STARTTLS", Self::StartTls),
        ("ID", Self::Id),
        ("LOGIN", Self::Login),
        ("AUTHENTICATE", Self::Authenticate),
    ];

    fn parse(name: &[u8]) -> Self {
        let known = Self::ALL
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
        known.map_or(Self::Unknown, |(_, verb)| *verb)
    }
}

/// A command whose tag and name are known, and whose arguments are not parsed yet: whether they are worth it
/// depends on the channel.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// `None`: it is not a tag.
    pub(crate) tag: Option<Tag>,
    pub(crate) verb: Verb,
    args: &'a [u8],
    extent: Extent,
}

/// How much of a command is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// Up to and with the announcement of a literal for which the sender awaits an invitation.
    UpToLiteral,
}

/// Why arguments could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They are good as far as they are here: invite the literal.
    NeedLiteral,
    /// They are not what the grammar says.
    Invalid,
}

impl<'a> Request<'a> {
    /// ```text
    /// command = tag SP command-any CRLF       ; RFC 9051 section 9
    /// ```
    pub(crate) fn parse(bytes: &'a [u8], extent: Extent) -> Self {
        let bytes = match extent {
            Extent::Whole => without_line_end(bytes),
            Extent::UpToLiteral => bytes,
        };
        let (tag, rest) = word(bytes);
        let (verb, args) = word(rest.strip_prefix(b" ").unwrap_or_default());
        Request {
            tag: Tag::parse(tag),
            verb: Verb::parse(verb),
            args,
            extent,
        }
    }

    /// For commands without arguments. Quirk (old telnet scripts, some IoT mailers): trailing blanks.
    pub(crate) fn nothing(&self) -> Result<(), Fault> {
        self.cursor().end()
    }

    /// ```text
    /// login = "LOGIN" SP userid SP password   ; both astring, RFC 9051 section 9
    /// ```
    pub(crate) fn login(&self) -> Result<(Vec<u8>, Secret<Vec<u8>>), Fault> {
        let mut args = self.cursor();
        args.blanks()?;
        let user = args.astring()?;
        args.blanks()?;
        let password = Secret::new(args.astring()?);
        args.end()?;
        Ok((user, password))
    }

    /// ```text
    /// authenticate = "AUTHENTICATE" SP auth-type [SP initial-resp]    ; RFC 9051 section 9
    /// initial-resp = (base64 / "=")
    /// ```
    pub(crate) fn authenticate(&self) -> Result<(&'a [u8], Option<&'a [u8]>), Fault> {
        let mut args = self.cursor();
        args.blanks()?;
        let mechanism = args.plain_word()?;
        if args.end().is_ok() {
            return Ok((mechanism, None));
        }
        args.blanks()?;
        let initial = args.plain_word()?;
        args.end()?;
        Ok((mechanism, Some(initial)))
    }

    /// ```text
    /// id             = "ID" SP id-params-list                          ; RFC 2971 section 4
    /// id-params-list = "(" *(string SP nstring [SP]) ")" / nil
    /// ```
    /// The ABNF of the RFC wants a blank behind the last pair, its examples have none; clients send none, one, two.
    pub(crate) fn id(&self) -> Result<IdFields, Fault> {
        let mut args = self.cursor();
        let mut fields = IdFields::default();
        args.blanks()?;
        if !args.nil() {
            args.byte(b'(')?;
            for pair in 0.. {
                args.skip_blanks();
                if args.byte(b')').is_ok() {
                    break;
                }
                if pair == MAX_ID_PAIRS {
                    return Err(Fault::Invalid);
                }
                let key = args.string()?;
                args.skip_blanks();
                let value = if args.nil() { None } else { Some(args.string()?) };
                remember(&mut fields, &key, value);
            }
        }
        args.end()?;
        Ok(fields)
    }

    fn cursor(&self) -> Cursor<'a> {
        Cursor {
            rest: self.args,
            extent: self.extent,
        }
    }
}

/// Only name and version are of interest, and of a proxy how many may follow. A client's own `x-originating-ip` and the
/// like end here.
fn remember(fields: &mut IdFields, key: &[u8], value: Option<Vec<u8>>) {
    let field = match key {
        _ if key.eq_ignore_ascii_case(b"x-proxy-ttl") => {
            let digits = value.as_deref().and_then(|digits| std::str::from_utf8(digits).ok());
            fields.ttl = digits.and_then(|digits| digits.parse().ok());
            return;
        }
        _ if key.eq_ignore_ascii_case(b"name") => &mut fields.name,
        _ if key.eq_ignore_ascii_case(b"version") => &mut fields.version,
        _ => return,
    };
    *field = value.map(|value| String::from_utf8_lossy(&value[..value.len().min(MAX_ID_VALUE)]).into_owned());
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

/// Splits before the first blank or line end.
fn word(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\r' | b'\n'))
        .unwrap_or(bytes.len());
    bytes.split_at(end)
}

/// Reads arguments from left to right.
struct Cursor<'a> {
    rest: &'a [u8],
    extent: Extent,
}

impl<'a> Cursor<'a> {
    fn end(&self) -> Result<(), Fault> {
        let whole = self.extent == Extent::Whole;
        if whole && self.rest.iter().all(|&byte| byte == b' ') {
            Ok(())
        } else {
            Err(Fault::Invalid)
        }
    }

    fn byte(&mut self, byte: u8) -> Result<(), Fault> {
        self.rest = self.rest.strip_prefix(&[byte]).ok_or(Fault::Invalid)?;
        Ok(())
    }

    /// One blank or more. Quirk (scripts): doubled blanks.
    fn blanks(&mut self) -> Result<(), Fault> {
        self.byte(b' ')?;
        self.skip_blanks();
        Ok(())
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest.iter().take_while(|&&byte| byte == b' ').count();
        self.rest = &self.rest[blanks..];
    }

    /// Takes `NIL` if it stands here.
    fn nil(&mut self) -> bool {
        let here = self.rest.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"NIL"));
        if here {
            self.rest = &self.rest[3..];
        }
        here
    }

    /// A mechanism name or base64: printable ASCII without blanks.
    fn plain_word(&mut self) -> Result<&'a [u8], Fault> {
        self.take_while(u8::is_ascii_graphic)
    }

    fn take_while(&mut self, belongs: impl Fn(&u8) -> bool) -> Result<&'a [u8], Fault> {
        let length = self.rest.iter().take_while(|byte| belongs(byte)).count();
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        if taken.is_empty() {
            Err(Fault::Invalid)
        } else {
            Ok(taken)
        }
    }

    /// ```text
    /// astring = 1*ASTRING-CHAR / string       ; RFC 9051 section 9
    /// ```
    /// Quirk (scripts, IoT mailers; accepted by the proxies we replace): atoms may hold any octet that cannot be
    /// mistaken for something else, such as `DOMAIN\user`, `50%*` and UTF-8.
    fn astring(&mut self) -> Result<Vec<u8>, Fault> {
        match self.rest.first() {
            Some(b'"' | b'{') => self.string(),
            _ => {
                let belongs = |byte: &u8| !byte.is_ascii_control() && !b" \"(){".contains(byte);
                self.take_while(belongs).map(<[u8]>::to_vec)
            }
        }
    }

    /// ```text
    /// string = quoted / literal               ; RFC 9051 section 9
    /// ```
    fn string(&mut self) -> Result<Vec<u8>, Fault> {
        match self.rest.first() {
            Some(b'"') => self.quoted(),
            Some(b'{') => self.literal(),
            _ => Err(Fault::Invalid),
        }
    }

    /// ```text
    /// quoted = DQUOTE *QUOTED-CHAR DQUOTE     ; RFC 9051 section 9
    /// QUOTED-CHAR = <any TEXT-CHAR except quoted-specials> / "\" quoted-specials / UTF8-2 / UTF8-3 / UTF8-4
    /// ```
    fn quoted(&mut self) -> Result<Vec<u8>, Fault> {
        self.byte(b'"')?;
        // Enough room from the start: a password that moved while growing would leave copies.
        let mut value = Vec::with_capacity(self.rest.len());
        let mut octets = self.rest.iter().enumerate();
        while let Some((at, &octet)) = octets.next() {
            match octet {
                b'"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(value);
                }
                b'\\' => match octets.next() {
                    Some((_, &special @ (b'"' | b'\\'))) => value.push(special),
                    _ => break,
                },
                0 | b'\r' | b'\n' => break,
                _ => value.push(octet),
            }
        }
        drop(Secret::new(value));
        Err(Fault::Invalid)
    }

    /// See [`line::literal_header`].
    fn literal(&mut self) -> Result<Vec<u8>, Fault> {
        let line::LineSearch::Line { text, end } = line::find_line(self.rest, line::MAX_LINE) else {
            return Err(Fault::Invalid);
        };
        let header = line::literal_header(&self.rest[..text]).filter(|header| header.start == 0);
        let header = header.ok_or(Fault::Invalid)?;
        let behind = &self.rest[end..];
        if behind.is_empty() && self.extent == Extent::UpToLiteral {
            return Err(Fault::NeedLiteral);
        }
        let (value, rest) = behind.split_at_checked(header.octets).ok_or(Fault::Invalid)?;
        self.rest = rest;
        Ok(value.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(bytes: &[u8], extent: Extent) -> String {
        let request = Request::parse(bytes, extent);
        let tag = request.tag.as_ref().map_or("-", Tag::as_str).to_owned();
        let args = match request.verb {
            Verb::Login => request.login().map(|(user, password)| {
                format!(
                    "{:?} {:?}",
                    String::from_utf8_lossy(&user),
                    String::from_utf8_lossy(password.expose())
                )
            }),
            Verb::Authenticate => request
                .authenticate()
                .map(|(name, initial)| format!("{:?} {:?}", name.escape_ascii().to_string(), initial.map(<[u8]>::len))),
            Verb::Id => request.id().map(|id| format!("{:?} {:?}", id.name, id.version)),
            _ => request.nothing().map(|()| String::new()),
        };
        format!(
            "{tag} {:?} {}",
            request.verb,
            args.unwrap_or_else(|fault| format!("{fault:?}"))
        )
    }

    fn check(command: &str, expected: &str) {
        assert_eq!(show(command.as_bytes(), Extent::Whole), expected, "{command:?}");
    }

    fn check_partial(command: &str, expected: &str) {
        assert_eq!(show(command.as_bytes(), Extent::UpToLiteral), expected, "{command:?}");
    }

    #[test]
    fn tags() {
        check("a1 NOOP\r\n", "a1 Noop ");
        check("]!#$&',-./:;<=>?@[^_`|}~ noop\n", "]!#$&',-./:;<=>?@[^_`|}~ Noop ");
        check(
            &format!("{} NOOP\r\n", "t".repeat(126)),
            &format!("{} Noop ", "t".repeat(126)),
        );
        check(&format!("{} NOOP\r\n", "t".repeat(127)), "- Noop ");
        for bad in ["+", "a+", "a*", "a%", "(", "a{", "\"a\"", "a\\", "\u{e9}", "a\t", ""] {
            check(&format!("{bad} NOOP\r\n"), "- Noop ");
        }
    }

    #[test]
    fn names() {
        check("a cApAbIlItY  \r\n", "a Capability ");
        check("a CAPABILITY x\r\n", "a Capability Invalid");
        check("a NOOP\0\r\n", "a Unknown ");
        check("a NOOP\r \r\n", "a Noop Invalid");
        check("a  NOOP\r\n", "a Unknown Invalid");
        check("a\r\n", "a Unknown ");
        check("GET / HTTP/1.1\r\n", "GET Unknown Invalid");
    }

    #[test]
    fn logins() {
        check("a LOGIN alice secret\r\n", r#"a Login "alice" "secret""#);
        check("a LOGIN  alice   secret \r\n", r#"a Login "alice" "secret""#);
        check("a LOGIN DOM\\al p%*]ss\r\n", r#"a Login "DOM\\al" "p%*]ss""#);
        check("a LOGIN \"al ice\" \"s\\\"\\\\\"\r\n", r#"a Login "al ice" "s\"\\""#);
        check("a LOGIN \"\" \"\"\r\n", r#"a Login "" """#);
        check("a LOGIN {5}\r\nalice {0+}\r\n\r\n", r#"a Login "alice" """#);
        check("a LOGIN {5+}\nal\r\ne \"s\"\n", r#"a Login "al\r\ne" "s""#);
        for bad in [
            "",
            "alice",
            "alice ",
            "a b c",
            "\"a b",
            "\"a\\b\" c",
            "(a) b",
            "a b{",
            "\"a\"b c",
            "a b\rc",
            "a b\0",
        ] {
            check(&format!("a LOGIN {bad}\r\n"), "a Login Invalid");
        }
    }

    #[test]
    fn invitations() {
        check_partial("a LOGIN {5}\r\n", "a Login NeedLiteral");
        check_partial("a LOGIN {0}\r\n", "a Login NeedLiteral");
        check_partial("a LOGIN {5}\r\nalice {3}\r\n", "a Login NeedLiteral");
        check_partial("a LOGIN al{5}\r\n", "a Login Invalid");
        check_partial("a LOGIN \"x{5}\r\n", "a Login Invalid");
        check_partial("a LOGIN a b {5}\r\n", "a Login Invalid");
        check_partial("a ID (\"name\" {5}\r\n", "a Id NeedLiteral");
        check_partial("a ID {5}\r\n", "a Id Invalid");
        check_partial("a NOOP {5}\r\n", "a Noop Invalid");
        check_partial("a AUTHENTICATE PLAIN {5}\r\n", "a Authenticate Invalid");
    }

    #[test]
    fn authentications() {
        check("a AUTHENTICATE PLAIN\r\n", "a Authenticate \"PLAIN\" None");
        check("a AUTHENTICATE PLAIN \r\n", "a Authenticate \"PLAIN\" None");
        check("a AUTHENTICATE PLAIN AAAA\r\n", "a Authenticate \"PLAIN\" Some(4)");
        check("a AUTHENTICATE PLAIN =\r\n", "a Authenticate \"PLAIN\" Some(1)");
        check("a AUTHENTICATE\r\n", "a Authenticate Invalid");
        check("a AUTHENTICATE PLAIN A B\r\n", "a Authenticate Invalid");
    }

    #[test]
    fn identities() {
        let both = r#"a Id Some("n") Some("1")"#;
        let none = "a Id None None";
        check("a ID NIL\r\n", none);
        check("a ID nil \r\n", none);
        check("a ID ()\r\n", none);
        check("a ID (  )\r\n", none);
        check("a ID (\"name\" \"n\" \"version\" \"1\")\r\n", both);
        check("a ID  ( \"NAME\"  \"n\"  \"x\" NIL  \"Version\" {1}\r\n1 )\r\n", both);
        check("a ID (\"x-originating-ip\" \"10.0.0.1\" \"name\" NIL)\r\n", none);
        check(
            "a ID (\"os\" {12}\r\n123456789012 \"version\" \"1\" \"name\" \"n\")\r\n",
            both,
        );
        for bad in [
            "",
            "(",
            "(\"name\")",
            "(\"a\" \"b\" \"c\")",
            "NILS",
            "(())",
            "name",
            "(\"a\" b)",
            "() x",
        ] {
            check(&format!("a ID {bad}\r\n"), "a Id Invalid");
        }
        check(&format!("a ID ({})\r\n", "\"a\" \"b\" ".repeat(30)), none);
        check(&format!("a ID ({})\r\n", "\"a\" \"b\" ".repeat(31)), "a Id Invalid");
        check(&format!("a ID {}\r\n", "(".repeat(8_000)), "a Id Invalid");
    }
}
