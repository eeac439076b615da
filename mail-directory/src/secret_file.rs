//! Files with secrets in them: whether users other than the owner and the group may read or change them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What stands in every private key in PEM, whatever its kind.
pub const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// The bits of a file's mode for all other users.
pub const OTHERS: u32 = 0o007;

/// Whether every user of this machine may read or change a file.
pub fn is_open(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.mode() & OTHERS != 0)
}

/// The warning about a file with a secret that every user of this machine may read.
pub fn warning(path: &Path) -> Option<String> {
    is_open(path).then(|| format!("{} can be read by everybody", path.display()))
}
