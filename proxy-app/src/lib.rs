//! The front door program.
