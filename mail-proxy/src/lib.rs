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
mod connection;
mod conversation;
mod credentials;
mod environment;
mod gs2;
mod handle;
pub mod imap;
mod known_servers;
mod learned;
pub mod line;
mod login;
pub mod login_failure;
mod machine;
mod mechanism;
pub mod pop3;
mod proto;
mod referral;
pub mod relay;
pub mod sasl;
mod scram;
mod scratch;
mod server_refusal;
mod server_rules;
mod session;
pub mod throttle;
mod upstream;

pub use connection::{BoxStream, CertificateNames, Client, ConnectionFacts, Stream, TlsFacts};
pub use credentials::{Credentials, Master, Proof, Rejected, login_name};
pub use environment::{ConnectError, Connection, NewSession, SessionEnv, SessionLimits, Settings, Transport};
pub use handle::{AwaitsClient, CloseReason, ConnectionHandle, Drain, LoggedIn, LoginSlot, Totals, WaitsForUs};
pub use known_servers::{KnownServer, KnownServers, Said};
pub use learned::{LearnedCapabilities, LearnedServer};
pub use login::{LoginDialect, LoginDriver, LoginLimits, Texts};
pub use machine::{
    Accepted, Channel, DialogueEnd, IdFields, Introduction, LoginMachine, StartTls, Step, UpstreamMachine, UpstreamStep,
};
pub use mechanism::{Mechanism, Mechanisms, ProofKind};
pub use proto::{Proto, Protocol};
pub use referral::Referral;
pub use scram::{ClientFirst, Decoys};
pub use server_refusal::Refusal;
pub use server_rules::{Announcement, ProxyVersion, ServerRule, ServerRules, Tell};
pub use session::serve;
pub use upstream::{UpstreamDialect, UpstreamDriver};
