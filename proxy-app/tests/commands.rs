//! Each verb and each option of the command line stands in the operator's guide.
//!
//! Asks the program itself: the description of its command line, and the help of `portico prov`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command as Process;

use clap::{Command, CommandFactory};
use proxy_app::cli::Cli;

/// Where a verb and its options may stand.
const PAGES: [&str; 4] = ["admin", "prov", "configuration", "operations"];

/// Options that mean the same wherever they stand: one line is enough.
const EVERYWHERE: [&str; 4] = ["help", "version", "socket", "json"];

/// The lines of all pages.
fn guide() -> Vec<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = PAGES.map(|page| fs::read_to_string(docs.join(page).with_extension("md")).unwrap());
    pages.iter().flat_map(|page| page.lines().map(str::to_owned)).collect()
}

#[test]
fn every_verb_and_option_is_in_the_guide() {
    let mut portico = Cli::command().name("portico");
    portico.build();
    let (guide, mut missing, mut seen) = (guide(), Vec::new(), 0);
    let mut must = |words: &[&str]| {
        seen += 1;
        if !guide.iter().any(|line| words.iter().all(|word| says(line, word))) {
            missing.push(words.join(" … "));
        }
    };
    walk(&portico, "portico", &mut must);
    assert!(seen > 30, "only {seen} verbs and options were found");
    assert!(
        missing.is_empty(),
        "no line of {PAGES:?} says:\n  {}",
        missing.join("\n  ")
    );
}

/// Each verb must be in a line, and each of its options in one that names the verb. What is the same for every verb
/// needs to stand in any line.
fn walk(command: &Command, name: &str, must: &mut impl FnMut(&[&str])) {
    let outermost = !name.contains(' ');
    must(&[name]);
    for argument in command.get_arguments() {
        let everywhere = argument.is_global_set() || EVERYWHERE.contains(&argument.get_id().as_str());
        let Some(long) = argument.get_long() else {
            continue;
        };
        let option = format!("--{long}");
        match outermost || everywhere {
            true => must(&[&option]),
            false => must(&[name, &option]),
        }
    }
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
    for verb in verbs {
        walk(verb, &format!("{name} {}", verb.get_name()), must);
    }
}

#[test]
fn every_verb_and_option_of_prov_is_in_the_guide() {
    let help = Process::new(env!("CARGO_BIN_EXE_portico"))
        .args(["prov", "help", "commands"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (guide, mut missing, mut seen) = (guide(), Vec::new(), 0);
    for line in help.lines().filter(|line| line.starts_with("  ")) {
        let first = line.split_whitespace().next().unwrap();
        let words = match first.strip_suffix(')').and_then(|first| first.split_once('(')) {
            Some((long, short)) => vec![format!("`{long}`"), format!("`{short}`")],
            None => line
                .split([' ', ','])
                .filter(|word| word.starts_with('-') && word.len() > 1)
                .map(str::to_owned)
                .collect(),
        };
        seen += words.len();
        let wanted = |line: &&String| words.iter().all(|word| says(line, word));
        if !words.is_empty() && guide.iter().find(wanted).is_none() {
            missing.push(words.join(", "));
        }
    }
    assert!(seen > 50, "only {seen} verbs and options were found in:\n{help}");
    assert!(
        missing.is_empty(),
        "no line of {PAGES:?} says:\n  {}",
        missing.join("\n  ")
    );
}

/// Whether a line has this word, and not only as part of a longer one.
fn says(line: &str, word: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || c == '-';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        !before.ends_with(inner) && !after.starts_with(inner)
    })
}
