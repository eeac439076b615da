//! What a failed TLS handshake means, on both sides: in words that can be logged.

use std::io;

use mail_directory::tls_words::reasons;
use openssl::ssl::{Error, ErrorCode, SslRef};

/// How AWS-LC calls it when it refuses the peer's certificate.
const VERIFICATION: &str = "CERTIFICATE_VERIFY_FAILED";

/// Whether it is one of these alerts of the peer.
pub(crate) fn is_alert(error: &Error, alerts: &[&str]) -> bool {
    let reasons_given = error.ssl_error().map(|stack| stack.errors()).unwrap_or_default();
    let mut said = reasons_given.iter().filter_map(|error| error.reason());
    said.any(|reason| alerts.contains(&reason))
}

/// The error of a failed handshake: that of the connection, as it is; or what is wrong with the peer's certificate, behind
/// the words of `refusal`; or else the reason that the TLS library gives.
pub(crate) fn explain(ssl: &SslRef, error: Error, refusal: &str) -> io::Error {
    let reasons_given = error.ssl_error().map(|stack| stack.errors()).unwrap_or_default();
    if reasons_given.iter().any(|error| error.reason() == Some(VERIFICATION)) {
        return io::Error::other(format!("{refusal}: {}", ssl.verify_result()));
    }
    match error.into_io_error() {
        Ok(error) => error,
        // Without an error of its own it is the end of the stream.
        Err(error) if error.code() == ErrorCode::SYSCALL => io::ErrorKind::UnexpectedEof.into(),
        Err(error) => io::Error::other(reasons(&error.to_string()).into_owned()),
    }
}
