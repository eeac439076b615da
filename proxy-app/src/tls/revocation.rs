//! Which certificates of clients their authorities have taken back: lists in a file (RFC 5280 section 5).
//!
//! The TLS library looks into them in each handshake. Whoever fetches them replaces the file.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mail_directory::tls_words::reasons;
use openssl::error::ErrorStack;
use openssl::sha::Sha256;
use openssl::x509::{X509Crl, X509NameRef};

use super::asn1_time::seconds_until;
use super::distinguished_name::name;

const MIB: u64 = 1024 * 1024;
/// Longest file. Whoever names an authority in a handshake has the library check the signature of its list, so a long
/// one costs everybody.
const FILE_MAX: u64 = 8 * MIB;
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
    lists: Arc<Vec<X509Crl>>,
    /// SHA-256 of the file that they are from.
    octets: [u8; 32],
    /// Issuers whose lists were over when this was made: sessions and connections that began before must end with them.
    over: BTreeSet<String>,
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
    #[error("it is longer than {} MiB", FILE_MAX / MIB)]
    TooLong,
    /// There is no list in it.
    #[error("there is no list in it: expected PEM (X509 CRL), or one list in DER")]
    Empty,
    /// Behind a list in DER there is more, which the TLS library would not see.
    #[error("there is more behind a list in DER: several lists must be in PEM")]
    More,
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
        let mut octets = Vec::new();
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut octets)?;
        if octets.len() as u64 > FILE_MAX {
            return Err(ListsError::TooLong);
        }
        let mut sha = Sha256::new();
        sha.update(&octets);
        let lists = Self {
            file: Some((path.to_owned(), state)),
            lists: Arc::new(parse(&octets)?),
            octets: sha.finish(),
            over: BTreeSet::new(),
        };
        let over = lists.over();
        Ok(Self { over, ..lists })
    }

    /// Whether they are those that this file has now, and as good as they were.
    pub(crate) fn are_current(&self, path: Option<&Path>) -> bool {
        match (&self.file, path) {
            (None, None) => true,
            (Some((file, read)), Some(path)) => file == path && *read == state(path) && self.over == self.over(),
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
            lists: self.lists.clone(),
            octets: self.octets,
            over: self.over(),
        }
    }

    /// The lists themselves.
    pub(super) fn lists(&self) -> &[X509Crl] {
        &self.lists
    }

    /// What is equal where lists are, and as good.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(&self.octets);
        for issuer in &self.over {
            sha.update(issuer.as_bytes());
            sha.update(b"\n");
        }
        sha.finish()
    }

    /// Whether there is a list that is signed by this name.
    pub(super) fn has_one_by(&self, issuer: &X509NameRef) -> bool {
        let mut issuers = self.lists.iter().map(|list| list.issuer_name());
        issuers.any(|known| known.try_cmp(issuer).is_ok_and(Ordering::is_eq))
    }

    /// What is to be known of the lists of each issuer: of several, the one that lasts longest counts.
    pub(crate) fn facts(&self) -> Vec<ListFacts> {
        let mut facts: BTreeMap<String, Option<i64>> = BTreeMap::new();
        for list in self.lists.iter() {
            let left = list.next_update().and_then(seconds_until);
            let known = facts.entry(name(list.issuer_name()).0).or_insert(left);
            // Without an end it lasts for ever.
            *known = known.zip(left).map(|(known, left)| known.max(left));
        }
        let facts = facts.into_iter();
        facts
            .map(|(issuer, seconds_left)| ListFacts { issuer, seconds_left })
            .collect()
    }

    /// Issuers of which no list is good any more.
    pub(crate) fn over(&self) -> BTreeSet<String> {
        let over = self.facts().into_iter().filter(ListFacts::is_over);
        over.map(|list| list.issuer).collect()
    }
}

impl ListFacts {
    /// Whether a newer list should be there already.
    fn is_over(&self) -> bool {
        self.seconds_left.is_some_and(|left| left < 0)
    }
}

fn state(path: &Path) -> Option<FileState> {
    let about = fs::metadata(path).ok()?;
    Some((about.mtime(), about.mtime_nsec(), about.ino(), about.len()))
}

fn parse(octets: &[u8]) -> Result<Vec<X509Crl>, ListsError> {
    // Between lists there may be words in whatever encoding.
    let text = String::from_utf8_lossy(octets);
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
        let list = X509Crl::from_der(octets).map_err(|error| ListsError::Unparsed { at: 1, error })?;
        if list.to_der().map_or(0, |list| list.len()) != octets.len() {
            return Err(ListsError::More);
        }
        lists.push(list);
    }
    Ok(lists)
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lists", self.lists.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::asn1::Asn1Time;
    use openssl::bn::BigNum;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::extension::{AuthorityKeyIdentifier, CrlNumber};
    use openssl::x509::{X509, X509CrlBuilder, X509Name};

    /// A list of this issuer, which is good for so many days from today.
    fn list(issuer: &str, days: i64) -> X509Crl {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut name = X509Name::builder().unwrap();
        name.append_entry_by_nid(Nid::COMMONNAME, issuer).unwrap();
        let name = name.build();
        let mut authority = X509::builder().unwrap();
        authority.set_subject_name(&name).unwrap();
        authority.set_issuer_name(&name).unwrap();
        authority.set_pubkey(&key).unwrap();
        authority.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        authority.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        authority.sign(&key, MessageDigest::sha256()).unwrap();
        let authority = authority.build();
        let at = |days: i64| {
            let now = jiff::Timestamp::now().as_second();
            Asn1Time::from_unix(now + days * 24 * 60 * 60).unwrap()
        };
        let mut builder = X509CrlBuilder::new().unwrap();
        builder.set_issuer_name(&name).unwrap();
        builder.set_last_update(&at(-9)).unwrap();
        builder.set_next_update(&at(days)).unwrap();
        let any = X509::builder().unwrap();
        let context = any.x509v3_context(Some(&authority), None);
        let id = AuthorityKeyIdentifier::new().issuer(true).build(&context).unwrap();
        builder.append_extension(id).unwrap();
        let number = CrlNumber::new(BigNum::from_u32(1).unwrap()).unwrap();
        builder.append_extension(number.build().unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build().unwrap()
    }

    fn read(octets: &[u8]) -> Result<RevocationLists, ListsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), octets).unwrap();
        RevocationLists::read(file.path())
    }

    #[test]
    fn lists_are_read_in_pem_or_one_in_der() {
        let (one, other) = (list("one", 1), list("other", 1));
        let [der, its_pem, pem] = [one.to_der(), one.to_pem(), other.to_pem()].map(Result::unwrap);
        let issuers = |octets: &[u8]| {
            let facts = read(octets).map(|lists| lists.facts());
            facts.map(|facts| facts.into_iter().map(|list| list.issuer).collect::<Vec<_>>())
        };
        assert_eq!(issuers(&der).unwrap(), ["CN=one"]);
        let both = [&b"of Z\xfcrich\n"[..], &its_pem, b"\n", &pem].concat();
        assert_eq!(issuers(&both).unwrap(), ["CN=one", "CN=other"]);
        for (octets, told) in [
            (&b""[..], "there is no list in it"),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "there is no list in it",
            ),
            (&pem[..pem.len() / 2], "list 1 does not parse"),
            (&der[..der.len() / 2], "list 1 does not parse"),
            (&[&der[..], &der].concat(), "there is more behind a list in DER"),
            (&pem.repeat(LISTS + 1), "there are more than 256 lists"),
            (&vec![b'x'; FILE_MAX as usize + 1], "it is longer than 8 MiB"),
        ] {
            let why = issuers(octets).unwrap_err().to_string();
            assert!(why.starts_with(told), "{why}");
        }
    }

    #[test]
    fn of_two_lists_of_an_issuer_the_one_that_lasts_longer_counts() {
        let pem = |days: &[i64]| {
            let lists = days.iter().map(|days| list("one", *days).to_pem().unwrap());
            lists.collect::<Vec<_>>().concat()
        };
        for (days, is_over) in [
            (&[-1, 1][..], false),
            (&[1, -1], false),
            (&[-1, -2], true),
            (&[-1], true),
        ] {
            let lists = read(&pem(days)).unwrap();
            let facts = lists.facts();
            assert_eq!((facts.len(), facts[0].is_over()), (1, is_over), "{days:?}");
            assert_eq!(lists.over.len(), usize::from(is_over));
        }
    }

    #[test]
    fn lists_that_are_over_are_others() {
        let lists = read(&list("one", 1).to_pem().unwrap()).unwrap();
        let over = RevocationLists {
            over: BTreeSet::from(["CN=one".to_owned()]),
            ..lists.kept(Path::new("x"))
        };
        assert_ne!(lists.digest(), over.digest());
        let path = lists.file.as_ref().map(|(path, _)| path.clone()).unwrap();
        assert!(!over.are_current(Some(&path)), "of another file");
    }
}
