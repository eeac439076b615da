//! What a node has of its own, whatever it serves: logs, metrics, connections, limits, logins, systemd.

pub mod connections;
pub mod diagnostics;
pub mod limits;
pub mod logins;
pub mod logs;
pub mod metrics;
pub mod redaction;
pub mod refusals;
pub mod systemd;
