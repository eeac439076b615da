//! The secrets that the stage plants, and the search for them in the logs of every Portico at its end.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Result, ensure};

/// The logs of a Portico. Its other files may well hold a secret.
const LOGS: [&str; 3] = ["output.log", "audit.log", "access.log"];

/// What has been planted in this process.
static PLANTED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Plants secrets: from here on no log may show them.
pub fn plant(secrets: impl IntoIterator<Item = Vec<u8>>) {
    let mut planted = PLANTED.lock().expect("nobody panics holding it");
    planted.extend(secrets);
}

/// Fails if a log in this directory shows a planted secret.
pub fn must_not_be_logged(dir: &Path) -> Result<()> {
    let planted = PLANTED.lock().expect("nobody panics holding it");
    // What stands in for a full disk is a device, and has no end.
    for path in LOGS
        .map(|name| dir.join(name))
        .into_iter()
        .filter(|path| path.is_file())
    {
        let written = std::fs::read(&path).unwrap_or_default();
        let line = shown(&written, &planted).map(|at| {
            let begin = written[..at]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            let end = written[at..].iter().position(|byte| *byte == b'\n');
            String::from_utf8_lossy(&written[begin..end.map_or(written.len(), |end| at + end)])
        });
        ensure!(line.is_none(), "{} shows a secret: {line:?}", path.display());
    }
    Ok(())
}

/// Where a text shows one of these secrets. There may be many thousands of them: each place is looked at once.
pub fn shown(text: &[u8], secrets: &[Vec<u8>]) -> Option<usize> {
    const BEGINNING: usize = 4;
    let mut by_beginning: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for secret in secrets.iter().filter(|secret| secret.len() >= BEGINNING) {
        by_beginning.entry(&secret[..BEGINNING]).or_default().push(secret);
    }
    let shows = |(_, window): &(usize, &[u8])| by_beginning.contains_key(window);
    let mut places = text.windows(BEGINNING).enumerate().filter(shows);
    places
        .find(|(at, window)| {
            by_beginning[window]
                .iter()
                .any(|secret| text[*at..].starts_with(secret))
        })
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_secret_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("audit.log");
        plant([b"pl4nted-in-a-test".to_vec()]);
        std::fs::write(&log, "a line\nand another\n").expect("written");
        assert!(must_not_be_logged(dir.path()).is_ok());
        std::fs::write(&log, "a line\nand pl4nted-in-a-test too\n").expect("written");
        assert!(must_not_be_logged(dir.path()).is_err());
    }
}
