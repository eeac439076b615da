//! IMAP and POP3 until a user is logged in at the mailbox server that holds the mail; from there on a relay.
//!
//! [`serve`] takes one accepted connection from greeting to end. It knows no socket: it gets a stream and a
//! [`Transport`] that can start TLS on it and connect to a route. The protocol machines ([`imap`], [`pop3`],
//! [`sasl`], [`mod@line`]) do not even know the stream: bytes in, bytes and a decision out.
//!
//! What is deliberately not here: sockets, certificates, the directory, and any decision whether a password is
//! right (the mailbox server decides). After login no byte is parsed.
#![forbid(unsafe_code)]

mod attempt;
pub mod audit;
pub mod failure;
pub mod imap;
pub mod line;
mod live;
mod login;
pub mod pop3;
pub mod relay;
pub mod sasl;
mod session;

pub use live::{Live, LoggedIn, Order, Place, Totals, WaitsForUs};
pub use login::{
    Accepted, Channel, Credentials, Ended, IdFields, Introduction, LoginMachine, Mechanism, Refusal, Rejected,
    StartTls, Step, UpstreamMachine, UpstreamStep,
};
pub use session::{
    BoxStream, Client, ConnectError, Connection, Drain, House, Protocol, Settings, Stream, TlsFacts, Transport, serve,
};
