//! The rules of the directory: what may stand in an entry, and in which form.

pub(crate) mod certificate;
pub(crate) mod rules;
pub(crate) mod values;
