//! Referrals: a server says at which other server an account is (RFC 2221).
//!
//! Only what it says is read here. Nothing of it is believed: whether there is such a server is for the directory to say.

/// Octets of a referral. Names of hosts and users have at most 255 each.
const MAX: usize = 1024;

/// Where a server says that an account is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referral {
    /// The name of its user there; `None`: the same as here.
    pub user: Option<String>,
    /// The server.
    pub host: String,
}

impl Referral {
    /// ```text
    /// resp-text-code =/ "REFERRAL" SPACE 1*<url>                               ; RFC 2221 section 5
    /// iserver = "imap://" [ enc-user [ ";AUTH=" … ] "@" ] host [ ":" port ] "/"  ; RFC 5092 section 11
    /// popserver = "pop://" [ user [ ";AUTH=" … ] "@" ] host [ ":" port ]         ; RFC 2384 section 9
    /// ```
    ///
    /// The port is left out: the directory knows on which one its servers are reached.
    pub(crate) fn of_code(code: &str) -> Option<Self> {
        let word = code.get(..8).filter(|word| word.eq_ignore_ascii_case("REFERRAL"))?;
        // Of several the first is the one to try (RFC 2221 section 4.1).
        let url = code[word.len()..].strip_prefix([' ', '/'])?.split(' ').next()?;
        let (scheme, rest) = url.split_once("://").filter(|_| url.len() <= MAX)?;
        let known = ["imap", "imaps", "pop", "pop3", "pop3s"];
        if !known.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return None;
        }
        let authority = rest.split('/').next()?;
        let (user, server) = match authority.rsplit_once('@') {
            Some((user, server)) => (Some(user_of(user)?), server),
            None => (None, authority),
        };
        Some(Self {
            user: user.filter(|user| !user.is_empty()),
            host: host_of(server)?.to_owned(),
        })
    }

    /// Zimbra's POP3 names the server in words: `operation sent to wrong host (you want 'store2.example.com')`.
    pub(crate) fn of_words(text: &str) -> Option<Self> {
        let (_, behind) = text.split_once("(you want ")?;
        let host = behind.split_once(')')?.0.trim_matches('\'');
        Some(Self {
            user: None,
            host: host_of(host)?.to_owned(),
        })
    }

    /// Takes the referral out of the final answer of a login that was accepted. What we follow is not the client's.
    pub(crate) fn take(answer: &mut Vec<u8>) -> Option<Self> {
        let text = std::str::from_utf8(answer).ok()?;
        let (status, behind) = text.split_once(' ')?;
        let (code, text) = behind.strip_prefix('[')?.split_once(']')?;
        let is_referral = code.get(..8).is_some_and(|word| word.eq_ignore_ascii_case("REFERRAL"));
        if !is_referral {
            return None;
        }
        let referral = Self::of_code(code);
        *answer = format!("{status} {}", text.trim_start()).into_bytes();
        referral
    }
}

/// `alice%40a.example;AUTH=*` → `alice@a.example`
fn user_of(text: &str) -> Option<String> {
    let name = text.split(';').next()?;
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out)
        .ok()
        .filter(|name| !name.chars().any(char::is_control))
}

/// The host of `host:port` or `[address]:port`.
fn host_of(server: &str) -> Option<&str> {
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => server.split_at(server.find(':').unwrap_or(server.len())),
    };
    let good_port = port.is_empty() || port.strip_prefix(':')?.parse::<u16>().is_ok();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let good_host = !host.is_empty() && host.len() <= 255 && host.chars().all(good);
    (good_port && good_host).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referral(user: &str, host: &str) -> Option<Referral> {
        Some(Referral {
            user: (!user.is_empty()).then(|| user.to_owned()),
            host: host.to_owned(),
        })
    }

    #[test]
    fn urls_of_imap_and_pop3() {
        for (code, user, host) in [
            ("REFERRAL imap://s2.example/", "", "s2.example"),
            ("referral IMAP://al%40ice@s2.example:993/", "al@ice", "s2.example"),
            ("REFERRAL imap://a;AUTH=*@s2.example/ imap://s3/", "a", "s2.example"),
            ("REFERRAL imap://;AUTH=*@s2/INBOX", "", "s2"),
            ("REFERRAL pop://a%2Eb@[::1]:995", "a.b", "::1"),
            ("REFERRAL/pop3://s2", "", "s2"),
        ] {
            assert_eq!(Referral::of_code(code), referral(user, host), "{code}");
        }
        let long = format!("REFERRAL imap://{}/", "a".repeat(300));
        for code in [
            "REFERRAL",
            "REFERRAL ",
            "REFERRAL s2",
            "REFERRALS imap://s2/",
            "REFERRAL imap://",
            "REFERRAL imap:///",
            "REFERRAL http://s2/",
            "REFERRAL imap://s2:x/",
            "REFERRAL imap://s2:99999/",
            "REFERRAL imap://a%4@s2/",
            "REFERRAL imap://a%zz@s2/",
            "REFERRAL imap://a%0d@s2/",
            "REFERRAL imap://a%ff@s2/",
            "REFERRAL imap://s2\u{e9}/",
            "REFERRAL imap://[::1/",
            "REFERRA\u{e9} imap://s2/",
            &long,
        ] {
            assert_eq!(Referral::of_code(code), None, "{code}");
        }
    }

    #[test]
    fn words_of_zimbra() {
        let words = "-ERR operation sent to wrong host (you want 'store2.example.test')";
        assert_eq!(Referral::of_words(words), referral("", "store2.example.test"));
        for text in ["-ERR wrong host (you want ", "-ERR wrong host (you want '')", "-ERR"] {
            assert_eq!(Referral::of_words(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_followed_is_not_told_to_the_client() {
        let take = |text: &str| {
            let mut answer = text.as_bytes().to_vec();
            let referral = Referral::take(&mut answer);
            (referral.map(|r| r.host), String::from_utf8(answer).unwrap())
        };
        for (answer, host, left) in [
            ("OK [REFERRAL imap://s2/] in", Some("s2"), "OK in"),
            ("OK [REFERRAL rubbish] in", None, "OK in"),
            ("OK [CAPABILITY IMAP4rev1] in", None, "OK [CAPABILITY IMAP4rev1] in"),
            ("+OK [REFERRAL pop://s2] in", Some("s2"), "+OK in"),
            ("+OK in", None, "+OK in"),
        ] {
            assert_eq!(take(answer), (host.map(str::to_owned), left.to_owned()), "{answer}");
        }
    }
}
