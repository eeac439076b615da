//! What a TLS library says went wrong, fit for people: its reason without its codes and the places in its sources.
//!
//! It is read from the text, because errors arrive here inside those of other libraries.

use std::borrow::Cow;

/// How an error of OpenSSL or AWS-LC begins: `error:1000009F:library:function:REASON:file:line:data`.
const MARK: &str = "error:";
/// Digits of its code.
const CODE: usize = 8;

/// A text in which each error of the TLS library is replaced by its reason, in small letters and with what the library
/// adds: `error:0900006E:PEM routines:OPENSSL_internal:NO_START_LINE:/build/pem_lib.c:581:Expecting: CERTIFICATE`
/// becomes `no start line: Expecting: CERTIFICATE`. In a list of them (`, `), a reason is not repeated.
pub fn reasons(text: &str) -> Cow<'_, str> {
    let (mut clean, mut rest, mut last) = (String::new(), text, None);
    while let Some(error) = first_error(rest) {
        if error.before != ", " || last != Some(error.reason) {
            clean.push_str(error.before);
            clean.push_str(&error.reason.replace('_', " ").to_ascii_lowercase());
        }
        rest = error.rest;
        last = Some(error.reason);
        if rest.starts_with(|c: char| !", )\"".contains(c)) {
            clean.push_str(": ");
        }
    }
    match last {
        None => Cow::Borrowed(text),
        Some(_) => Cow::Owned(clean + rest),
    }
}

/// An error of the TLS library within a text.
struct Found<'a> {
    before: &'a str,
    reason: &'a str,
    rest: &'a str,
}

fn first_error(text: &str) -> Option<Found<'_>> {
    text.match_indices(MARK).find_map(|(at, mark)| {
        let (before, error) = (&text[..at], &text[at + mark.len()..]);
        let (code, fields) = error.split_once(':')?;
        let is_code = code.len() == CODE && code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut fields = is_code.then_some(fields)?.splitn(6, ':');
        let (_library, _function, reason) = (fields.next()?, fields.next()?, fields.next()?);
        let (_file, line, rest) = (fields.next()?, fields.next()?, fields.next()?);
        let is_line = line.bytes().all(|byte| byte.is_ascii_digit());
        is_line.then_some(Found { before, reason, rest })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_alone() {
        let places = |name: &str| format!("OPENSSL_internal:{name}:/home/me/aws-lc/ssl/ssl_lib.cc:2144:");
        let no_match = format!("error:100000B1:SSL routines:{}", places("NO_CIPHER_MATCH"));
        let command = format!("error:1000009E:SSL routines:{}", places("INVALID_COMMAND"));
        for (text, expected) in [
            (no_match.clone(), "no cipher match"),
            (format!("{no_match}, {no_match}"), "no cipher match"),
            (
                format!("{command}, {no_match}, {no_match}"),
                "invalid command, no cipher match",
            ),
            (
                format!("TLS with a:1: {no_match} (unknown)"),
                "TLS with a:1: no cipher match (unknown)",
            ),
            (
                format!("{no_match}Expecting: CERTIFICATE, {command}Type=X509"),
                "no cipher match: Expecting: CERTIFICATE, invalid command: Type=X509",
            ),
            // OpenSSL's own, and the same inside of a debug text.
            (
                "Ssl(\"error:0A000086:SSL routines:tls_post:certificate verify failed:../ssl/x.c:1889:\")".to_owned(),
                "Ssl(\"certificate verify failed\")",
            ),
            // Nothing of it.
            ("an error: no".to_owned(), "an error: no"),
            ("error:12345678:a:b:c".to_owned(), "error:12345678:a:b:c"),
            ("error:1234567é:a:b:c:d:1:".to_owned(), "error:1234567é:a:b:c:d:1:"),
            ("error:12345678:a:b:c:d:x:".to_owned(), "error:12345678:a:b:c:d:x:"),
            (format!("error:{no_match}"), "error:no cipher match"),
        ] {
            assert_eq!(reasons(&text), expected, "{text}");
        }
    }
}
