//! The Unix process: its service, its signals, how it gives way to a new one, how it goes into the background.

pub mod daemon;
pub mod service;
pub mod shutdown;
pub mod upgrade;
