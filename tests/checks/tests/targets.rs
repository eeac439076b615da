//! Every fuzz target on stable: all seeds, all of its dictionary, and random mixtures of them for a moment.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use portico_checks::input::{Known, folder};
use portico_checks::{TARGETS, check};

/// So long for one target; all of them stay under a quarter of a minute.
const MOMENT: Duration = Duration::from_millis(900);
/// So many inputs in any case: a busy machine checks something too.
const LEAST: usize = 300;
/// And no more than these: what a fast machine finds good, every other one finds good.
const MOST: usize = 5_000;
/// The variable that asks for so many inputs instead, however long they take: a hunt where there is no nightly.
const HUNT: &str = "PORTICO_CHECKS_INPUTS";

/// Shows an input that something does not hold for.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with these bytes: \"{}\"", self.0.escape_ascii());
        }
    }
}

fn play(target: &str) {
    let start = Instant::now();
    let hunt = std::env::var(HUNT)
        .ok()
        .map(|inputs| inputs.parse().expect("a number of inputs"));
    for (round, bytes) in Known::of(target).inputs().take(hunt.unwrap_or(MOST)).enumerate() {
        if hunt.is_none() && round >= LEAST && start.elapsed() > MOMENT {
            break;
        }
        let shown = Shown(&bytes);
        check(target, shown.0);
    }
}

/// A test for each, so that it has a name and a process of its own.
macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];
        $(
            #[test]
            fn $name() {
                play(stringify!($name));
            }
        )+
    };
}

targets![
    account,
    client_hello,
    frames,
    head,
    imap,
    line,
    lookup_request,
    lookup_response,
    memcached,
    path,
    pop3,
    proxy,
    rewrite,
    sasl,
    sync_message,
    yaml,
];

#[test]
fn every_target_is_fuzzed_and_tested() {
    let here: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let tested: BTreeSet<String> = TESTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(here, tested, "the list of this test");
    for (names, ending) in [("fuzz_targets", ".rs"), ("dictionaries", ".dict"), ("seeds", "")] {
        let files = fs::read_dir(folder().join(names)).unwrap();
        let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<String> = files.map(|file| file.trim_end_matches(ending).to_owned()).collect();
        assert_eq!(here, files, "tests/fuzz/{names}");
    }
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for name in here {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
    }
}
