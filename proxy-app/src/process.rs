//! The Unix process: its service, its signals, its replacement by a new one, its way into the background.

pub mod daemon;
pub mod service;
pub mod shutdown;
pub mod upgrade;
