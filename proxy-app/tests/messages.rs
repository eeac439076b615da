//! Whoever finds a message in the diagnostic log finds it in docs/messages.md, with what it means and what to do.
//!
//! Looks at the sources: each `log::error!` and `log::warn!` that has words of its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_message_of_the_log_is_explained() {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(house.join("docs/messages.md")).unwrap();
    let mut sources = Vec::new();
    for folder in ["proxy-app/src", "mail-proxy/src", "route-cache/src"] {
        collect(&house.join(folder), &mut sources);
    }
    let mut seen = 0;
    let mut missing = Vec::new();
    for path in sources {
        let source = fs::read_to_string(&path).unwrap();
        let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        let source = lines.collect::<Vec<_>>().join("\n");
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["log::error!(", "log::warn!("] {
            for message in source.split(call).skip(1).filter_map(message) {
                seen += 1;
                if !page.contains(&format!("`{message}")) {
                    missing.push(format!("{}: {message}", path.display()));
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} messages were found in the sources");
    assert!(
        missing.is_empty(),
        "docs/messages.md lacks:\n  {}",
        missing.join("\n  ")
    );
}

/// The text of a logging call, with `…` for what is filled in; `None` where it has no word of its own.
fn message(call: &str) -> Option<String> {
    let literal = call.trim_start().strip_prefix('"')?.split('"').next()?;
    // Of a text of several lines the first is enough.
    let literal = literal.split('\\').next()?.trim_end();
    let mut parts = literal.split(['{', '}']);
    let mut message = parts.next()?.to_owned();
    while let (Some(_), Some(more)) = (parts.next(), parts.next()) {
        message.push('…');
        message.push_str(more);
    }
    message.contains(char::is_alphabetic).then_some(message)
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
