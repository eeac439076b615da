//! Which certificates of clients their authorities have taken back: lists in a file (RFC 5280 section 5).
//!
//! The TLS library looks into them in each handshake. Whoever fetches them replaces the file.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mail_directory::tls_words::reasons;
use openssl::error::ErrorStack;
use openssl::sha::Sha256;
use openssl::x509::{X509, X509Crl};

use super::asn1_time::seconds_until;
use super::distinguished_name::name;

/// Longest file. A list of a large authority has some megabytes.
const FILE_MAX: u64 = 64 * 1024 * 1024;
/// Most lists.
const LISTS: usize = 256;
/// Between these lines stands a list (RFC 7468 section 6).
const BEGIN: &str = "-----BEGIN X509 CRL-----";
const END: &str = "-----END X509 CRL-----";

/// The lists of a file.
#[derive(Default)]
pub(crate) struct RevocationLists {
    /// The file, and how it was when it was read; `None`: there is none.
    file: Option<(PathBuf, Option<FileState>)>,
    digest: [u8; 32],
    lists: Arc<Vec<X509Crl>>,
}

/// By what a file is known to have changed.
type FileState = (i64, i64, u64, u64);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListsError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// It is longer than lists are.
    #[error("it is longer than 64 MiB")]
    TooLong,
    /// There is no list in it.
    #[error("there is no list in it: expected PEM (X509 CRL), or one list in DER")]
    Empty,
    /// There are more lists than are looked through.
    #[error("there are more than {LISTS} lists in it")]
    TooMany,
    /// The TLS library cannot read one.
    #[error("list {at} does not parse: {}", reasons(&.error.to_string()))]
    Unparsed {
        /// Which one, counted from 1.
        at: usize,
        /// Why.
        error: ErrorStack,
    },
}

/// What is to be known of a list.
pub(crate) struct ListFacts {
    /// Whose it is, as in RFC 4514.
    pub issuer: String,
    /// Seconds until a newer one must be there, negative if it should be already; `None`: it does not say.
    pub seconds_left: Option<i64>,
}

impl RevocationLists {
    /// The lists of a file: in PEM, or one in DER.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn read(path: &Path) -> Result<Self, ListsError> {
        // Before it is read: what changes meanwhile is seen the next time.
        let state = state(path);
        if fs::metadata(path)?.len() > FILE_MAX {
            return Err(ListsError::TooLong);
        }
        let octets = fs::read(path)?;
        let mut sha = Sha256::new();
        sha.update(&octets);
        Ok(Self {
            file: Some((path.to_owned(), state)),
            digest: sha.finish(),
            lists: Arc::new(parse(&octets)?),
        })
    }

    /// Whether they are those that this file has now.
    pub(crate) fn are_current(&self, path: Option<&Path>) -> bool {
        match (&self.file, path) {
            (None, None) => true,
            (Some((file, read)), Some(path)) => file == path && *read == state(path),
            _ => false,
        }
    }

    /// Whether they are those of this file, as it was once.
    pub(crate) fn are_of(&self, path: &Path) -> bool {
        self.file.as_ref().is_some_and(|(file, _)| file == path)
    }

    /// The same lists, where the file cannot be used as it is now. It is not read again before it changes.
    pub(crate) fn kept(&self, path: &Path) -> Self {
        Self {
            file: Some((path.to_owned(), state(path))),
            digest: self.digest,
            lists: self.lists.clone(),
        }
    }

    /// The lists themselves.
    pub(super) fn lists(&self) -> &[X509Crl] {
        &self.lists
    }

    /// What is equal where lists are.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Whether there is a list of this authority. Its own certificate says by which name it signs them.
    pub(super) fn has_one_of(&self, authority: &X509) -> bool {
        let signer = authority.subject_name();
        let mut issuers = self.lists.iter().map(|list| list.issuer_name());
        issuers.any(|issuer| issuer.try_cmp(signer).is_ok_and(std::cmp::Ordering::is_eq))
    }

    /// What is to be known of each.
    pub(crate) fn facts(&self) -> Vec<ListFacts> {
        let facts = |list: &X509Crl| ListFacts {
            issuer: name(list.issuer_name()).0,
            seconds_left: list.next_update().and_then(seconds_until),
        };
        self.lists.iter().map(facts).collect()
    }
}

fn state(path: &Path) -> Option<FileState> {
    let about = fs::metadata(path).ok()?;
    Some((about.mtime(), about.mtime_nsec(), about.ino(), about.len()))
}

fn parse(octets: &[u8]) -> Result<Vec<X509Crl>, ListsError> {
    let text = std::str::from_utf8(octets).unwrap_or_default();
    let mut lists = Vec::new();
    for part in text.split(BEGIN).skip(1) {
        if lists.len() == LISTS {
            return Err(ListsError::TooMany);
        }
        let body = part.split_once(END).map_or(part, |(body, _)| body);
        let list = X509Crl::from_pem(format!("{BEGIN}{body}{END}\n").as_bytes());
        let at = lists.len() + 1;
        lists.push(list.map_err(|error| ListsError::Unparsed { at, error })?);
    }
    if lists.is_empty() {
        // DER begins with the octet of a sequence.
        if octets.first() != Some(&0x30) {
            return Err(ListsError::Empty);
        }
        let list = X509Crl::from_der(octets);
        lists.push(list.map_err(|error| ListsError::Unparsed { at: 1, error })?);
    }
    Ok(lists)
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lists", self.lists.len())
    }
}
