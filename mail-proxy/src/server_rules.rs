//! What each mailbox server is told of a client, and in which words; whether TLS begins with STARTTLS there.
//!
//! The node file has rules by name, of which the first that says something counts; then the entry of the server in the
//! directory has a word. Without either, a server is told what Zimbra's proxy tells.

use std::collections::HashMap;
use std::sync::Arc;

use route_cache::Route;

/// In whose words a server is told of a client before the login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Announcement {
    /// Nothing.
    None,
    /// IMAP `ID` with `X-ORIGINATING-IP` and `X-VIA`, POP3 `XOIP`.
    #[default]
    Zimbra,
    /// IMAP `ID` with the `x-` fields of Dovecot's proxy, POP3 `XCLIENT`.
    Dovecot,
}

/// Version of a PROXY header (HAProxy, `proxy-protocol.txt`, sections 2.1 and 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary, with what is known of the client's TLS.
    V2,
}

/// What a server is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tell {
    /// Before the login, by commands of the protocol.
    pub announcement: Announcement,
    /// Before anything else.
    pub header: Option<ProxyVersion>,
}

impl Tell {
    /// Nothing at all.
    pub const NOTHING: Self = Self {
        announcement: Announcement::None,
        header: None,
    };

    /// The words of the node file and the directory.
    pub const WORDS: [&'static str; 5] = ["zimbra", "dovecot", "proxy_v1", "proxy_v2", "none"];

    /// What these words mean together.
    ///
    /// # Errors
    /// Two of them exclude each other; the text says which.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, &'static str> {
        let (mut tell, mut none) = (Self::NOTHING, false);
        for word in words {
            let word = word.to_ascii_lowercase();
            let announcement = match word.as_str() {
                "zimbra" => Announcement::Zimbra,
                "dovecot" => Announcement::Dovecot,
                _ => Announcement::None,
            };
            let header = match word.as_str() {
                "proxy_v1" => Some(ProxyVersion::V1),
                "proxy_v2" => Some(ProxyVersion::V2),
                _ => None,
            };
            none |= word == "none";
            if announcement != Announcement::None {
                if !matches!(tell.announcement, Announcement::None) && tell.announcement != announcement {
                    return Err("zimbra and dovecot exclude each other");
                }
                tell.announcement = announcement;
            }
            if header.is_some() {
                if tell.header.is_some() && tell.header != header {
                    return Err("proxy_v1 and proxy_v2 exclude each other");
                }
                tell.header = header;
            }
        }
        match none && tell != Self::NOTHING {
            true => Err("none stands alone"),
            false => Ok(tell),
        }
    }
}

/// One rule of the node file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRule {
    /// Name of the server's entry, or of an external host, in lower case. A `*` stands for any letters.
    pub name: String,
    /// What such servers are told; `None`: the rule says nothing of it.
    pub tell: Option<Tell>,
    /// Whether TLS begins with STARTTLS (IMAP) or STLS (POP3) where the server is spoken to at its clear-text port;
    /// `None`: the rule says nothing of it.
    pub starttls: Option<bool>,
}

impl ServerRule {
    fn is_for(&self, server: &str) -> bool {
        matches(&self.name, server)
    }

    /// An external server is not ours, and is told of clients only where a rule has its very name.
    fn tells(&self, route: &Route) -> bool {
        self.is_for(&route.server) && (!route.external || !self.name.contains('*'))
    }
}

/// The rules in force.
#[derive(Debug, Clone, Default)]
pub struct ServerRules {
    /// Those of the node file, in their order.
    pub rules: Vec<ServerRule>,
    /// What the directory says that servers are told, by the names of their entries in lower case.
    pub directory: HashMap<Arc<str>, Tell>,
}

impl ServerRules {
    /// What the server of a route is told; `None`: nobody says.
    pub(crate) fn tell(&self, route: &Route) -> Option<Tell> {
        let mut rules = self.rules.iter().filter(|rule| rule.tells(route));
        let of_directory = || self.directory.get(&*route.server.to_ascii_lowercase()).copied();
        let ruled = rules.find_map(|rule| rule.tell);
        match route.external {
            true => Some(ruled.unwrap_or(Tell::NOTHING)),
            false => ruled.or_else(of_directory),
        }
    }

    /// Whether the server of a route must be spoken to in TLS that begins with STARTTLS, by a rule of the node file.
    pub fn starttls(&self, route: &Route) -> bool {
        self.starttls_at(&route.server)
    }

    /// The same for a server by the name of its entry.
    pub fn starttls_at(&self, server: &str) -> bool {
        let mut rules = self.rules.iter().filter(|rule| rule.is_for(server));
        rules.find_map(|rule| rule.starttls).unwrap_or(false)
    }
}

/// Whether a name fits a pattern in lower case whose `*` stands for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use route_cache::{Tier, UpstreamTls};

    use super::*;

    fn route(server: &str, external: bool) -> Route {
        Route {
            account: "alice@a.example".into(),
            login: "alice@a.example".into(),
            server: server.into(),
            host: server.into(),
            port: 143,
            tls: UpstreamTls::Clear,
            external,
            tier: Tier::Directory,
            maintenance: false,
            max_sessions: None,
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("store1.test", "Store1.TEST", true),
            ("store1.test", "store1.test.", false),
            ("store*.test", "store12.test", true),
            ("store*.test", "store.test", true),
            ("store*.test", "xstore1.test", false),
            ("*", "", true),
            ("*.a.*", "x.a.b", true),
            ("*.a.*", "x.b", false),
            ("a*a", "a", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn words_together() {
        let both = Tell {
            announcement: Announcement::Dovecot,
            header: Some(ProxyVersion::V2),
        };
        assert_eq!(Tell::of_words(["Dovecot", "proxy_v2", "dovecot"]), Ok(both));
        assert_eq!(Tell::of_words(["none"]), Ok(Tell::NOTHING));
        for wrong in [["zimbra", "dovecot"], ["proxy_v1", "proxy_v2"], ["none", "zimbra"]] {
            assert!(Tell::of_words(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_rule_that_says_something_counts_and_then_the_directory() {
        let rule = |name: &str, tell: Option<&str>, starttls| ServerRule {
            name: name.to_owned(),
            tell: tell.map(|word| Tell::of_words([word]).unwrap()),
            starttls,
        };
        let rules = ServerRules {
            rules: vec![
                rule("store1.test", None, Some(true)),
                rule("store*.test", Some("dovecot"), Some(false)),
                rule("old.test", Some("proxy_v1"), None),
                rule("*", None, None),
            ],
            directory: [("store1.test", "none"), ("other.test", "proxy_v2")]
                .map(|(name, word)| (name.into(), Tell::of_words([word]).unwrap()))
                .into(),
        };
        let tell = |name: &str, external| rules.tell(&route(name, external));
        let says = |word: &str| Some(Tell::of_words([word]).unwrap());
        assert_eq!(tell("store1.test", false), says("dovecot"));
        assert_eq!(tell("Other.test", false), says("proxy_v2"));
        assert_eq!(tell("third.test", false), None);
        // What is outside is told nothing but by its name.
        assert_eq!(tell("store9.test", true), says("none"));
        assert_eq!(tell("other.test", true), says("none"));
        assert_eq!(tell("old.test", true), says("proxy_v1"));
        assert!(rules.starttls(&route("store1.test", false)));
        assert!(!rules.starttls(&route("store2.test", false)) && !rules.starttls(&route("old.test", true)));
    }
}
