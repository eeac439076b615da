//! The rules of the directory: what may stand in an entry, and in which form.

use std::fmt;

use mail_directory::edit::{EditError, EntryKind};

pub(crate) mod certificate;
pub(crate) mod change;
pub(crate) mod rules;
pub(crate) mod values;

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProvisionError {
    /// Its syntax is wrong; the usage is printed.
    Usage(String),
    /// The directory, or the check of values, refuses it.
    Service {
        /// Carbonio's word for it.
        code: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The same, without a word for it.
    Plain(String),
}

/// Carbonio's codes of failures that callers distinguish; the one for a name of another domain is ours.
pub(crate) const NO_SUCH_DOMAIN: &str = "account.NO_SUCH_DOMAIN";

pub(crate) const NAME_TAKEN: &str = "account.VIRTUAL_HOSTNAME_EXISTS";

pub(crate) const DENIED: &str = "service.PERM_DENIED";

pub(crate) const FAILED: &str = "service.FAILURE";

/// Parts of the names of attributes whose values are secret: passwords, private keys, the keys that sign tokens, second
/// factors. In lower case.
const SECRETS: [&str; 6] = [
    "password",
    "privatekey",
    "tokenkey",
    "preauthkey",
    "secret",
    "scratchcodes",
];

/// Whether the values of an attribute are secret.
pub(crate) fn is_secret(attribute: &str) -> bool {
    let lower = attribute.to_ascii_lowercase();
    SECRETS.iter().any(|part| lower.contains(part))
}

impl ProvisionError {
    pub(crate) fn service(code: &'static str, message: impl Into<String>) -> Self {
        Self::Service {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn value(message: impl fmt::Display) -> Self {
        Self::service("account.INVALID_ATTR_VALUE", format!("invalid attr value: {message}"))
    }

    pub(crate) fn request(message: impl fmt::Display) -> Self {
        Self::service("service.INVALID_REQUEST", format!("invalid request: {message}"))
    }

    pub(crate) fn no_such(kind: EntryKind, key: &str) -> Self {
        EditError::NoSuch(kind, key.to_owned()).into()
    }
}

impl From<EditError> for ProvisionError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::NoSuch(kind, key) => {
                let code = match kind {
                    EntryKind::Servers => "account.NO_SUCH_SERVER",
                    EntryKind::Domains => NO_SUCH_DOMAIN,
                    EntryKind::Cos => "account.NO_SUCH_COS",
                    EntryKind::Accounts => "account.NO_SUCH_ACCOUNT",
                    EntryKind::Config => "service.NOT_FOUND",
                };
                Self::service(code, format!("no such {}: {key}", kind.one()))
            }
            EditError::Exists(EntryKind::Accounts, key) => exists("account.ACCOUNT_EXISTS", "email address", &key),
            EditError::Exists(EntryKind::Domains, key) => exists("account.DOMAIN_EXISTS", "domain", &key),
            EditError::Exists(EntryKind::Servers, key) => exists("account.SERVER_EXISTS", "server", &key),
            EditError::Exists(EntryKind::Cos | EntryKind::Config, key) => exists("account.COS_EXISTS", "cos", &key),
            EditError::InUse(message) => Self::service("account.DOMAIN_NOT_EMPTY", message),
            EditError::Name(message) => {
                Self::service("account.INVALID_ATTR_NAME", format!("invalid attr name: {message}"))
            }
            EditError::Value(message) | EditError::Changed(message) => Self::value(message),
            EditError::Denied(message) => Self::service(DENIED, format!("permission denied: {message}")),
            EditError::Failed(message) => Self::service(FAILED, format!("system failure: {message}")),
        }
    }
}

pub(crate) fn exists(code: &'static str, what: &str, key: &str) -> ProvisionError {
    ProvisionError::service(code, format!("{what} already exists: {key}"))
}

/// The output of a command: lines for standard output, and warnings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandOutput {
    pub(crate) out: String,
    pub(crate) warnings: Vec<String>,
}

impl CommandOutput {
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        self.out.push_str(line.as_ref());
        self.out.push('\n');
    }

    /// Everything, the output first.
    pub(crate) fn into_lines(self) -> Vec<String> {
        let lines = self.out.lines().map(str::to_owned);
        lines.chain(self.warnings).collect()
    }

    pub(crate) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }
}

/// What to do with a virtual host name that another domain has, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedNames {
    /// It is stored with a warning, as in Carbonio.
    Warned,
    /// It is refused.
    Refused,
}
