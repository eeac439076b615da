//! The last good reading of a directory, kept in a file, so that a node can start while the directory is down.
//!
//! The file has the form of a YAML directory without accounts. It holds private keys: only its owner may read it.
//! Accounts are never kept.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use crate::entry::Entry;
use crate::system::{Entries, System};
use crate::yaml::{MAX_TEXT, Problems};
use crate::{file, secret_file};

/// Puts `system` in place of what the file holds, all at once.
///
/// # Errors
/// It cannot be written; then the previous file stays.
pub(crate) fn write(path: &Path, system: &System) -> io::Result<()> {
    let text = text_of(system);
    if text.len() > MAX_TEXT {
        return Err(io::Error::other("the directory is too big to be kept in a file"));
    }
    secret_file::replace(path, |file| file.write_all(text.as_bytes()))
}

/// What the file holds; `None` if there is no such file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path) -> Result<Option<System>, Problems> {
    match fs::exists(path) {
        Ok(false) => Ok(None),
        _ => file::system_of(path).map(Some),
    }
}

fn text_of(system: &System) -> String {
    let mut text =
        String::from("# The directory as it was read last. Written by Portico; changes here are lost.\nconfig:\n");
    attributes(&mut text, &system.config, "  ");
    for (section, entries) in [
        ("servers", &system.servers),
        ("domains", &system.domains),
        ("cos", &system.cos),
    ] {
        section_of(&mut text, section, entries);
    }
    text
}

fn section_of(text: &mut String, section: &str, entries: &Entries) {
    let _ = writeln!(text, "{section}:");
    for entry in entries.values() {
        text.push_str("  ");
        quote(text, entry.name());
        text.push_str(":\n");
        attributes(text, entry, "    ");
    }
}

fn attributes(text: &mut String, entry: &Entry, indent: &str) {
    for (name, values) in entry.iter() {
        text.push_str(indent);
        quote(text, name);
        text.push_str(": [");
        for (i, value) in values.iter().enumerate() {
            if i > 0 {
                text.push_str(", ");
            }
            quote(text, value);
        }
        text.push_str("]\n");
    }
}

/// YAML 1.2 §7.3.1, double-quoted: the one style that can hold every text.
fn quote(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            ' '..='~' => text.push(c),
            c => {
                let _ = write!(text, "\\U{:08x}", u32::from(c));
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn odd_system() -> System {
        let mut config = Entry::new("config");
        config.set("zimbraReverseProxyMailMode", ["nonsense"]);
        config.set("odd: #", ["\u{7f}\t\"\\ ü\r\n- !file x", "~", "{}"]);
        let mut domain = Entry::new("a: b.test");
        domain.set(
            "zimbraSSLPrivateKey",
            ["-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"],
        );
        domain.set("zimbraVirtualHostname", ["m.test", "n.test"]);
        System::new(config, [Entry::new("s")], [domain], [Entry::new("default")])
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert!(read(&path).unwrap().is_none());
        for _ in 0..2 {
            write(&path, &odd_system()).unwrap();
            let back = read(&path).unwrap().unwrap();
            assert_eq!(text_of(&back), text_of(&odd_system()));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_is_said_to_be_broken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        fs::write(&path, "config: [").unwrap();
        assert!(read(&path).unwrap_err().has_errors());
    }
}
