//! Entries as Carbonio prints them.

use mail_directory::Entry;

use crate::cli::prov::Flags;
use crate::provision::{CommandOutput, is_secret};

/// What is printed in the place of a secret.
const BLOCKED: &str = "VALUE-BLOCKED";
/// `# name …`, the attributes sorted by name with a line for each value, and an empty line.
pub(super) fn entry(entry: &Entry, wanted: &[String], flags: Flags, output: &mut CommandOutput) {
    output.line(format!("# name {}", entry.name()));
    attributes(entry, wanted, flags, output);
    output.line("");
}

/// The lines of the wanted attributes, or of all if none is named.
pub(super) fn attributes(entry: &Entry, wanted: &[String], flags: Flags, output: &mut CommandOutput) {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(name));
    for (name, values) in entry.iter().filter(|(name, _)| is_wanted(name)) {
        for value in values {
            match is_secret(name) && !flags.secrets {
                true => output.line(format!("{name}: {BLOCKED}")),
                false => output.line(format!("{name}: {}", printable(value))),
            }
        }
    }
}

/// Values have lines; what else could drive a terminal does not reach it.
fn printable(value: &str) -> String {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    value.replace(control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(wanted: &[&str], flags: Flags) -> String {
        let mut server = Entry::new("a.test");
        server.set("zimbraId", ["1"]);
        server.set("Description", ["two", "lines\nhere"]);
        server.set("zimbraSSLPrivateKey", ["secret"]);
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        let mut output = CommandOutput::default();
        entry(&server, &wanted, flags, &mut output);
        output.out
    }

    #[test]
    fn secrets_are_blocked_and_terminals_left_alone() {
        let mut config = Entry::new("config");
        for name in [
            "userPassword",
            "zimbraAuthTokenKey",
            "zimbraCsrfTokenKey",
            "zimbraPreAuthKey",
            "zimbraGalLdapBindPassword",
            "zimbraTwoFactorAuthSecret",
        ] {
            config.set(name, ["s3cret"]);
        }
        config.set("description", ["a\u{1b}[2Jb"]);
        let mut output = CommandOutput::default();
        entry(&config, &[], Flags::default(), &mut output);
        assert!(!output.out.contains("s3cret"), "{}", output.out);
        assert_eq!(output.out.matches(BLOCKED).count(), 6, "{}", output.out);
        assert!(output.out.contains("description: a?[2Jb\n"), "{}", output.out);
    }

    #[test]
    fn entries_are_dumped() {
        let all = "# name a.test\nDescription: two\nDescription: lines\nhere\nzimbraId: 1\n";
        assert_eq!(
            dumped(&[], Flags::default()),
            format!("{all}zimbraSSLPrivateKey: VALUE-BLOCKED\n\n")
        );
        assert_eq!(
            dumped(&["ZIMBRAid", "x"], Flags::default()),
            "# name a.test\nzimbraId: 1\n\n"
        );
        let secrets = Flags {
            secrets: true,
            ..Flags::default()
        };
        assert_eq!(
            dumped(&["zimbraSSLPrivateKey"], secrets),
            "# name a.test\nzimbraSSLPrivateKey: secret\n\n"
        );
    }
}
