//! What the mail system is: entries with attributes, in the names that Zimbra and Carbonio use (MAIL §7).
//!
//! A [`Directory`] holds what changes rarely (global config, servers, domains, classes of service) whole and in
//! memory as a [`System`]; accounts are asked for one by one. It is a YAML file ([`mod@file`]) or LDAP ([`ldap`]), and
//! both can be changed ([`edit`]). Inheritance and the reading of values are here ([`View`], [`attributes`]); what
//! follows from them for a login is not.
#![forbid(unsafe_code)]

pub mod attributes;
mod check;
mod directory;
pub mod edit;
mod entry;
pub mod file;
mod last_good;
pub mod ldap;
mod losses;
pub mod names;
mod secret;
pub mod secret_file;
mod system;
pub mod tls_words;
mod view;
pub mod yaml;

pub use directory::{AccountBy, Apply, Directory, DirectoryError, News, Touched, WayOfChanges};
pub use entry::{Entry, Origin};
pub use losses::Losses;
pub use names::{domain_of, fold};
pub use secret::Secret;
pub use system::System;
pub use view::View;
