//! Files with secrets in them: whether users other than the owner and the group may read or change them, and how a
//! process writes its own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What stands in every private key in PEM, whatever its kind.
pub const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// The bits of a file's mode for all other users.
pub const OTHERS: u32 = 0o007;

/// Whether every user of this machine may read or change a file.
pub fn is_open(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.mode() & OTHERS != 0)
}

/// The warning about a file with a secret that every user of this machine may read.
pub fn warning(path: &Path) -> Option<String> {
    is_open(path).then(|| format!("{} can be read by everybody", path.display()))
}

/// Puts what `write` writes in place of a file, all at once, for the eyes of this user only.
///
/// # Errors
/// It cannot be written; then the previous file stays.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let draft = beside(path, ".new");
    let written = write_private(&draft, write).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written?;
    // The name is safe from a power cut only when the folder is.
    File::open(
        path.parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )?
    .sync_all()
}

/// The path with something behind its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// An existing file could belong to another user, or be readable for others.
fn write_private(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    write(&mut file)?;
    file.sync_all()
}
