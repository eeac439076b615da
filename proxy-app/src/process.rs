//! The Unix process: its service, its signals, its replacement by a new one, its way into the background.

pub(crate) mod counts;
pub(crate) mod daemon;
pub(crate) mod service;
pub(crate) mod shutdown;
pub(crate) mod upgrade;
