//! The cipher list of the directory (`zimbraReverseProxySSLCiphers`), as far as the TLS library honours it.
//!
//! It is written with OpenSSL's names and commands. AWS-LC knows fewer of both: it skips an unknown name without a word,
//! and refuses a whole list for one unknown command.

use openssl::ssl::{SslContextBuilder, SslMethod};
use parking_lot::Mutex;

/// What separates the parts of a list.
const SEPARATORS: [char; 4] = [':', ' ', ',', ';'];
/// How the names of the suites of TLS 1.3 begin. They stand in no list: all three are always offered.
const TLS13: &str = "TLS_";

/// The list that was read last. Each of its parts costs a context, and few changes of the directory change it.
static LAST: Mutex<Option<(String, CipherList)>> = Mutex::new(None);

/// A cipher list as it is written, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CipherList {
    /// What the library takes of it; `None` if no cipher is left.
    pub honoured: Option<String>,
    /// The parts that it does not take.
    pub left_out: Vec<String>,
}

impl CipherList {
    /// Takes a list apart.
    pub(crate) fn read(list: &str) -> Self {
        let mut last = LAST.lock();
        if let Some((text, read)) = &*last
            && text == list
        {
            return read.clone();
        }
        let read = Self::try_parts(list);
        *last = Some((list.to_owned(), read.clone()));
        read
    }

    /// Shows each part to the library.
    fn try_parts(list: &str) -> Self {
        let parts = list.split(SEPARATORS).filter(|part| !part.is_empty());
        let (honoured, left_out): (Vec<&str>, Vec<&str>) = parts.partition(|part| is_honoured(part));
        let honoured = Some(honoured.join(":")).filter(|list| takes(list));
        Self {
            honoured,
            left_out: left_out.into_iter().map(str::to_owned).collect(),
        }
    }

    /// What of it is not honoured, and why; `None` if all is.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.left_out.is_empty() {
            return None;
        }
        let (tls13, unknown): (Vec<&str>, Vec<&str>) = self
            .left_out
            .iter()
            .map(String::as_str)
            .partition(|part| part.starts_with(TLS13));
        let mut parts = Vec::new();
        if !unknown.is_empty() {
            parts.push(format!(
                "the TLS library does not know {}: left out",
                unknown.join(", ")
            ));
        }
        if !tls13.is_empty() {
            parts.push(format!(
                "{}: all suites of TLS 1.3 are offered, none can be chosen",
                tls13.join(", ")
            ));
        }
        Some(parts.join("; "))
    }
}

/// Whether a part adds a cipher, or takes away or moves what may be there. Of the commands, only this one is known.
fn is_honoured(part: &str) -> bool {
    match part.chars().next() {
        Some('@') => part == "@STRENGTH",
        Some('!' | '-' | '+') => true,
        _ => takes(part),
    }
}

/// Whether the library finds a cipher in a list. An empty one is taken, too.
fn takes(list: &str) -> bool {
    let builder = SslContextBuilder::new(SslMethod::tls_server());
    !list.is_empty() && builder.and_then(|mut builder| builder.set_cipher_list(list)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Carbonio writes into its global config, and its fallback.
    const CARBONIO: [&str; 2] = [
        "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384",
        "EECDH+AESGCM:EDH+AESGCM",
    ];

    #[test]
    fn what_is_not_honoured_is_said() {
        for (list, honoured, warning) in [
            ("AES128-SHA", Some("AES128-SHA"), None),
            (
                CARBONIO[0],
                Some("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"),
                Some("the TLS library does not know DHE-RSA-AES128-GCM-SHA256, DHE-RSA-AES256-GCM-SHA384: left out"),
            ),
            (
                CARBONIO[1],
                Some("EECDH+AESGCM"),
                Some("the TLS library does not know EDH+AESGCM: left out"),
            ),
            ("HIGH:!aNULL:!MD5:!NONSENSE", Some("HIGH:!aNULL:!MD5:!NONSENSE"), None),
            ("ALL:@STRENGTH", Some("ALL:@STRENGTH"), None),
            (
                "@SECLEVEL=1, HIGH",
                Some("HIGH"),
                Some("the TLS library does not know @SECLEVEL=1: left out"),
            ),
            (
                "TLS_AES_128_GCM_SHA256:NONSENSE:AES128-SHA",
                Some("AES128-SHA"),
                Some(
                    "the TLS library does not know NONSENSE: left out; \
                     TLS_AES_128_GCM_SHA256: all suites of TLS 1.3 are offered, none can be chosen",
                ),
            ),
            (
                "kEDH+AES",
                None,
                Some("the TLS library does not know kEDH+AES: left out"),
            ),
            ("AES128-SHA:!AES128-SHA", None, None),
            ("!aNULL", None, None),
            ("", None, None),
        ] {
            let read = CipherList::read(list);
            assert_eq!(read.honoured.as_deref(), honoured, "{list}");
            assert_eq!(read.warning().as_deref(), warning, "{list}");
        }
    }
}
