//! The file with the keys of session tickets that an administrator distributes (`tls.ticket_keys_file`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use mail_directory::Secret;
use mail_directory::secret_file::OTHERS;

use super::tickets::TicketKey;

/// Most keys: three are enough for a rotation, and with each the time grows in which a ticket can be opened.
const KEYS: usize = 8;
/// Longest file: keys have 108 characters at most.
const FILE_MAX: u64 = 4096;
/// Octets of a key, as nginx and HAProxy have them: for AES-128 and for AES-256.
const LENGTHS: [usize; 2] = [48, 80];

/// The keys of a file, and when it was written.
pub(crate) struct TicketFile {
    /// The first makes tickets, all are taken.
    pub keys: Vec<TicketKey>,
    /// When it was written.
    pub since: Timestamp,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketFileError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// It is a folder, a pipe or a device.
    #[error("it is no file")]
    NoFile,
    /// Every user of this machine may read or change it.
    #[error("it can be read by everybody: allow no more than mode 0640")]
    Open,
    /// It is longer than keys are.
    #[error("it is longer than {FILE_MAX} bytes")]
    TooLong,
    /// A line holds no key.
    #[error("line {0}: expected a key of 48 or 80 octets in base64")]
    NoKey(usize),
    /// There is no key in it.
    #[error("there is no key in it")]
    Empty,
    /// There are more keys than may be taken.
    #[error("there are more than {KEYS} keys in it")]
    TooMany,
}

impl TicketFile {
    /// Reads a file: a key on each line. What is wrong is said without the keys.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn read(path: &Path) -> Result<Self, TicketFileError> {
        let about = fs::metadata(path)?;
        if !about.is_file() {
            return Err(TicketFileError::NoFile);
        }
        if about.mode() & OTHERS != 0 {
            return Err(TicketFileError::Open);
        }
        if about.len() > FILE_MAX {
            return Err(TicketFileError::TooLong);
        }
        let text = Secret::new(fs::read(path)?);
        Ok(Self {
            keys: keys(text.expose())?,
            since: Timestamp::try_from(about.modified()?).unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }
}

fn keys(text: &[u8]) -> Result<Vec<TicketKey>, TicketFileError> {
    let mut keys = Vec::new();
    for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let octets = STANDARD.decode(line).map(Secret::new);
        let octets = octets.ok().filter(|octets| LENGTHS.contains(&octets.expose().len()));
        let octets = octets.ok_or(TicketFileError::NoKey(at + 1))?;
        keys.push(TicketKey::digested(octets.expose()));
    }
    match keys.len() {
        0 => Err(TicketFileError::Empty),
        count if count > KEYS => Err(TicketFileError::TooMany),
        _ => Ok(keys),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<TicketFile, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tickets");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        TicketFile::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_used_as_a_whole_or_not_at_all() {
        let key = |octet, length| STANDARD.encode(vec![octet; length]) + "\n";
        let (short, long) = (key(1, 48), key(2, 80));
        let file = read(&format!("{short}\r\n\n{long}"), 0o640).unwrap();
        assert_eq!(file.keys.len(), 2);
        assert!(file.keys[0].is(&TicketKey::digested(&[1; 48])) && file.keys[1].is(&TicketKey::digested(&[2; 80])));
        let bad = "line 2: expected a key of 48 or 80 octets in base64";
        for (text, mode, expected) in [
            (
                short.clone(),
                0o644,
                "it can be read by everybody: allow no more than mode 0640",
            ),
            (
                short.clone(),
                0o602,
                "it can be read by everybody: allow no more than mode 0640",
            ),
            ("\n".to_owned(), 0o600, "there is no key in it"),
            (short.clone() + &key(3, 47), 0o600, bad),
            (short.clone() + &key(3, 64), 0o600, bad),
            (short.clone() + "no base64!", 0o600, bad),
            (
                "\u{0}\u{ff}".to_owned(),
                0o600,
                "line 1: expected a key of 48 or 80 octets in base64",
            ),
            (short.repeat(9), 0o600, "there are more than 8 keys in it"),
            ("A".repeat(5000), 0o600, "it is longer than 4096 bytes"),
        ] {
            assert_eq!(read(&text, mode).err().as_deref(), Some(expected), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(TicketFile::read(dir.path()), Err(TicketFileError::NoFile)));
        let none = dir.path().join("none");
        assert!(matches!(TicketFile::read(&none), Err(TicketFileError::Unreadable(_))));
    }
}
