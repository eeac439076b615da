//! Whoever reads a text of the program finds it in the operator's guide, with what it means and what to do: messages
//! of the diagnostic log in docs/messages.md, what `check`, `prov` and the other verbs print in docs/problems.md.
//!
//! Looks at the sources: each `log::error!` and `log::warn!` that has words of its own, and each literal that is handed
//! to what makes an error.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What makes an error, or a part of one, from a text.
const SAYING: [&str; 54] = [
    "Denied",
    "DirectoryError",
    "Elsewhere",
    "Err",
    "Failed",
    "InUse",
    "Malformed",
    "Name",
    "NoRoute",
    "NotReady",
    "Refused",
    "Unreachable",
    "UpstreamDown",
    "Usage",
    "Value",
    "anyhow!",
    "bad",
    "bail!",
    "broken",
    "bye",
    "cannot_tell",
    "conflict",
    "context",
    "e_explain",
    "ensure!",
    "error",
    "expected",
    "failed",
    "late",
    "left_out",
    "map_err",
    "missing",
    "new",
    "of_file",
    "ok_or",
    "ok_or_else",
    "or_err",
    "problem",
    "push",
    "refusal",
    "refuse",
    "refused",
    "request",
    "scalar",
    "service",
    "status",
    "unavailable",
    "unsure",
    "unwrap_or_else",
    "value",
    "warn",
    "warning",
    "with_context",
    "wrong",
];
/// What is only put around a text.
const AROUND: [&str; 5] = ["", "format!", "Some", "from", "other"];
/// How a text begins that is said further below.
const KEPT: [&str; 10] = [
    "Left::",
    "record.why =",
    "let message =",
    "let text =",
    "let mut last =",
    "let wrong = ||",
    "const WHAT: &str =",
    "message:",
    "why:",
    "Refusal::",
];

/// How IMAP and POP3 say no.
const REFUSALS: [&str; 3] = ["NO ", "BAD ", "-ERR "];
/// What stands there and is no error.
const NONE: [&str; 7] = [
    "private key",
    "domain …",
    "maintenance on",
    "maintenance off",
    "… … IMAP4 ready",
    "… … POP3 ready",
    "text/plain; charset=utf-8",
];

struct Source {
    path: PathBuf,
    text: String,
}

/// The sources of the program, without comments and tests.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in [
        "proxy-app/src",
        "mail-proxy/src",
        "route-cache/src",
        "mail-directory/src",
    ] {
        collect(&house().join(folder), &mut found);
    }
    let without = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n");
        let text = without_tests(&text).to_owned();
        Source { path, text }
    };
    found.into_iter().map(without).collect()
}

#[test]
fn every_message_of_the_log_is_explained() {
    every_text_is_explained("messages", 30, |source| {
        let calls = ["log::error!(", "log::warn!("].into_iter();
        calls
            .flat_map(|call| source.text.split(call).skip(1).filter_map(message))
            .collect()
    });
}

#[test]
fn every_problem_is_explained() {
    every_text_is_explained("problems", 200, |source| {
        // Why an attribute is ignored stands in docs/attributes.md.
        match source.path.ends_with("attributes/ignored.rs") {
            true => Vec::new(),
            false => texts(&source.text),
        }
    });
}

/// Looks for these texts of all sources on a page. Fewer than `least` are no good sign.
#[track_caller]
fn every_text_is_explained(name: &str, least: usize, texts: impl Fn(&Source) -> Vec<String>) {
    let page = page(name);
    let mut seen = 0;
    let mut missing = Vec::new();
    for source in sources() {
        for text in texts(&source) {
            seen += 1;
            if !page.contains(&format!("`{text}`")) {
                missing.push(format!("{}: {text}", source.path.display()));
            }
        }
    }
    assert!(seen > least, "only {seen} texts were found in the sources");
    assert!(missing.is_empty(), "docs/{name}.md lacks:\n  {}", missing.join("\n  "));
}

#[test]
fn no_line_of_the_pages_is_empty() {
    for name in ["messages", "problems"] {
        let page = page(name);
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        for row in rows {
            // The last cell begins behind the last blank and bar.
            let meaning = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            assert!(
                meaning.contains(' ') && !meaning.starts_with("| "),
                "docs/{name}.md: {row}"
            );
        }
    }
}

#[test]
fn every_explained_problem_occurs_in_the_code() {
    let said: HashSet<String> = sources()
        .iter()
        .flat_map(|source| literals(&source.text))
        .filter_map(|literal| filled(literal.text))
        .collect();
    let page = page("problems");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split("` | ").next());
    let stale: Vec<&str> = rows.filter(|text| !said.contains(*text)).collect();
    assert!(stale.is_empty(), "no source says:\n  {}", stale.join("\n  "));
}

/// A literal of a source.
struct Literal<'a> {
    text: &'a str,
    /// What it is handed to.
    callee: &'a str,
    /// The beginning of its statement.
    statement: &'a str,
}

/// The texts of errors in a source, with `…` for what is filled in.
fn texts(source: &str) -> Vec<String> {
    let is_error = |literal: &Literal| {
        SAYING.contains(&literal.callee)
            || KEPT.iter().any(|words| literal.statement.starts_with(words))
            || REFUSALS.iter().any(|word| literal.text.starts_with(word))
    };
    let texts = literals(source).into_iter().filter(is_error);
    texts
        .filter_map(|literal| filled(literal.text))
        .filter(|text| text.trim().contains(' ') && !NONE.contains(&text.as_str()))
        .collect()
}

fn literals(source: &str) -> Vec<Literal<'_>> {
    let mut found = Vec::new();
    let mut calls: Vec<(usize, &str)> = Vec::new();
    let bytes = source.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'(' => calls.push((at, callee(&source[..at]))),
            b')' => drop(calls.pop()),
            // A letter, and no lifetime.
            b'\'' if bytes.get(at + 1) == Some(&b'\\') => at += 3,
            b'\'' if bytes.get(at + 2) == Some(&b'\'') => at += 2,
            b'"' => {
                let length = length_of_literal(&bytes[at + 1..]);
                let around = calls.iter().rev().take_while(|(_, name)| AROUND.contains(name));
                let (outer, inner) = calls.split_at(calls.len() - around.count());
                let begin = inner.first().map_or(at, |(open, _)| *open);
                let statement = source[..begin].rsplit([';', '{', '}', ',']).next().unwrap_or_default();
                found.push(Literal {
                    text: &source[at + 1..at + 1 + length],
                    callee: outer.last().map_or("", |(_, name)| name),
                    statement: statement.trim_start(),
                });
                at += length + 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The name of what is called, from what stands in front of its arguments.
fn callee(before: &str) -> &str {
    let name = before.strip_suffix('!').unwrap_or(before);
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    &before[name.trim_end_matches(inner).len()..]
}

fn length_of_literal(behind: &[u8]) -> usize {
    let mut length = 0;
    while behind[length] != b'"' {
        length += if behind[length] == b'\\' { 2 } else { 1 };
    }
    length
}

/// The text of a logging call, with `…` for what is filled in; `None` where it has no word of its own.
fn message(call: &str) -> Option<String> {
    let call = call.trim_start();
    let call = match call.strip_prefix("target: ") {
        Some(rest) => rest.split_once(',')?.1.trim_start(),
        None => call,
    };
    let literal = call.strip_prefix('"')?;
    filled(&literal[..length_of_literal(literal.as_bytes())])
}

/// The first line of a literal, with `…` for what is filled in; `None` where it has no word of its own.
fn filled(literal: &str) -> Option<String> {
    let literal = literal
        .split("\\n")
        .next()?
        .trim_end_matches("\\r")
        .replace("\\\"", "\"");
    // Over several lines of the source.
    let parts: Vec<&str> = literal.split("\\\n").collect();
    let literal = [parts[0].to_owned()].into_iter();
    let literal: String = literal
        .chain(parts[1..].iter().map(|part| part.trim_start().to_owned()))
        .collect();
    let mut parts = literal.split(['{', '}']);
    let mut message = parts.next()?.to_owned();
    while let (Some(_), Some(more)) = (parts.next(), parts.next()) {
        message.push('…');
        message.push_str(more);
    }
    message.contains(char::is_alphabetic).then_some(message)
}

/// A page of the guide; a bar in a cell as it is meant.
fn page(name: &str) -> String {
    let path = house().join("docs").join(name).with_extension("md");
    fs::read_to_string(path).unwrap().replace("\\|", "|")
}

fn house() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A file's code before its test module, whoever may name that.
fn without_tests(text: &str) -> &str {
    let mut ends = ["mod ", "pub(crate) mod "].map(|module| text.find(&format!("#[cfg(test)]\n{module}")));
    ends.sort();
    ends.into_iter().flatten().next().map_or(text, |end| &text[..end])
}
