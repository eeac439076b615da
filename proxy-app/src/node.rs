//! What a node has of its own, whatever it serves: logs, metrics, connections, limits, logins, systemd.

pub(crate) mod connections;
pub mod diagnostics;
pub(crate) mod limits;
pub(crate) mod logins;
pub(crate) mod logs;
pub mod memory;
pub mod metrics;
pub(crate) mod program;
pub(crate) mod redaction;
pub mod refusals;
pub(crate) mod returns;
pub(crate) mod systemd;
