//! Entries as Carbonio prints them.

use route_cache::Entry;

use super::{Answer, Flags};

/// What is printed in the place of a secret.
const BLOCKED: &str = "VALUE-BLOCKED";
/// Attributes whose values are only shown with `-fd`.
const SECRETS: [&str; 2] = ["userPassword", "zimbraSSLPrivateKey"];

/// `# name …`, the attributes sorted by name with a line for each value, and an empty line.
pub(super) fn entry(entry: &Entry, wanted: &[String], flags: Flags, answer: &mut Answer) {
    answer.line(format!("# name {}", entry.name()));
    attributes(entry, wanted, flags, answer);
    answer.line("");
}

/// The lines of the wanted attributes, or of all if none is named.
pub(super) fn attributes(entry: &Entry, wanted: &[String], flags: Flags, answer: &mut Answer) {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(name));
    for (name, values) in entry.iter().filter(|(name, _)| is_wanted(name)) {
        let is_secret = SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(name));
        for value in values {
            let shown = if is_secret && !flags.secrets { BLOCKED } else { value };
            answer.line(format!("{name}: {shown}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(wanted: &[&str], flags: Flags) -> String {
        let mut server = Entry::new("a.test");
        server.set("zimbraId", ["1"]);
        server.set("Description", ["two", "lines\nhere"]);
        server.set("zimbraSSLPrivateKey", ["secret"]);
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        let mut answer = Answer::default();
        entry(&server, &wanted, flags, &mut answer);
        answer.out
    }

    #[test]
    fn entries_are_dumped() {
        let all = "# name a.test\nDescription: two\nDescription: lines\nhere\nzimbraId: 1\n";
        assert_eq!(
            shown(&[], Flags::default()),
            format!("{all}zimbraSSLPrivateKey: VALUE-BLOCKED\n\n")
        );
        assert_eq!(
            shown(&["ZIMBRAid", "x"], Flags::default()),
            "# name a.test\nzimbraId: 1\n\n"
        );
        let secrets = Flags {
            secrets: true,
            ..Flags::default()
        };
        assert_eq!(
            shown(&["zimbraSSLPrivateKey"], secrets),
            "# name a.test\nzimbraSSLPrivateKey: secret\n\n"
        );
    }
}
