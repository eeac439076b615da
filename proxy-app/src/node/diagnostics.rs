//! The diagnostic log, on standard error: which lines are shown, without secrets, and no more than a disk bears.
//!
//! Every line passes here, ours and those of libraries. Each may contain text from outside, so each is cleaned; each
//! may be caused by any client, so each line of source has its share of the log, and what is beyond it is counted.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};
use mail_directory::tls_words;
use parking_lot::Mutex;

use crate::node::redaction;

/// What is shown unless `RUST_LOG` says otherwise. Of Pingora's lines only those about the process are of use: it
/// logs each start and each failed health check at length, and clients that misbehave as errors. The result of a
/// request is logged by us. Its connectors log "failed to acquire reusable stream" as an error whenever another
/// thread has not quite let go of a kept connection, some times in a thousand requests; all that happens is that a
/// new one is opened.
const FILTER: &str = "info,pingora_core=warn,pingora_core::apps=off,pingora_core::connectors=off,\
                      pingora_core::protocols=off,pingora_proxy=off,pingora_load_balancing=error";

/// Our own crates. Only these are trusted to keep passwords and tokens out of their debug lines.
const OURS: [&str; 4] = ["proxy_app", "mail_proxy", "route_cache", "mail_directory"];

/// How a target ends whose lines are a list that an administrator has asked for, by a reload for example. No client
/// can make it longer, and a part of it would mislead.
const LISTS: &str = "::list";

/// Pingora's server logs this as an error, once a second, while it waits for the sockets of the previous process: at
/// every successful upgrade.
const WAITS_FOR_SOCKETS: &str = "No incoming socket transfer";

/// Lines of one line of source within [`WINDOW`]: more than an administrator reads, and little for a disk.
const SHARE: u32 = 50;
/// The time for which a share is given.
const WINDOW: Duration = Duration::from_secs(10);
/// Longest line. Problems of a configuration are shorter; what is longer comes from outside.
const MAX_LINE: usize = 4096;
/// How much of a line is shown as a sample of those left out.
const SAMPLE: usize = 80;

/// How an error of Pingora shows bytes from the network that it could not read: whole heads, with their cookies.
const QUOTED_INPUT: &str = "buf: ";
/// Fields whose values are secrets, wherever a line shows them.
const SECRET_FIELDS: [&str; 2] = ["authorization:", "cookie:"];

/// Levels that have a share, as labels of the metric.
const LEVELS: [(Level, &str); 3] = [(Level::Error, "error"), (Level::Warn, "warn"), (Level::Info, "info")];
/// Lines that were left out since the process started, in the order of [`LEVELS`].
static LEFT_OUT: [AtomicU64; LEVELS.len()] = [const { AtomicU64::new(0) }; LEVELS.len()];

struct Diagnostics {
    /// What `RUST_LOG` or [`FILTER`] shows.
    shown: env_logger::Logger,
    /// [`FILTER`], for libraries; `None` where `RUST_LOG` names Pingora.
    libraries: Option<env_logger::Logger>,
    shares: &'static LineShares,
}

/// The shares of this process.
static SHARES: LineShares = LineShares(Mutex::new(None));

/// Starts the diagnostic log.
pub fn start() {
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let names_pingora = wanted.as_ref().is_some_and(|wanted| wanted.contains("pingora"));
    let environment = env_logger::Env::default().default_filter_or(FILTER);
    let diagnostics = Diagnostics {
        shown: env_logger::Builder::from_env(environment).build(),
        libraries: (!names_pingora).then(|| env_logger::Builder::new().parse_filters(FILTER).build()),
        shares: &SHARES,
    };
    log::set_max_level(diagnostics.shown.filter());
    if log::set_boxed_logger(Box::new(diagnostics)).is_err() {
        eprintln!("portico: there is a diagnostic log already");
    }
}

/// How many lines were left out since the process started, by level.
pub(crate) fn left_out() -> impl Iterator<Item = (&'static str, u64)> {
    let counts = LEFT_OUT.iter().map(|count| count.load(Ordering::Relaxed));
    LEVELS.iter().map(|(_, name)| *name).zip(counts)
}

/// Logs from time to time how many lines were left out, for as long as the process lives.
pub(crate) async fn report_left_out() {
    loop {
        tokio::time::sleep(WINDOW).await;
        for (level, count, sample) in SHARES.left_out() {
            log::log!(target: "proxy_app::list", level, "{count} more lines like this were left out: {sample}");
        }
    }
}

impl Log for Diagnostics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_fit = match is_ours(metadata.target()) {
            true => true,
            // Libraries write whole requests with their cookies at the levels below.
            false if metadata.level() > Level::Info => false,
            false => self.libraries.as_ref().is_none_or(|filter| filter.enabled(metadata)),
        };
        is_fit && self.shown.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || !self.shares.take(record, Instant::now()) {
            return;
        }
        let text = record.args().to_string();
        if text.starts_with(WAITS_FOR_SOCKETS) {
            return;
        }
        let text = clean(&text);
        self.shares.note(record, &text);
        let mut builder = Record::builder();
        let builder = builder.metadata(record.metadata().clone());
        let builder = builder.module_path(record.module_path());
        self.shown.log(&builder.args(format_args!("{text}")).build());
    }

    fn flush(&self) {
        self.shown.flush();
    }
}

fn is_ours(target: &str) -> bool {
    OURS.contains(&target.split("::").next().unwrap_or_default())
}

/// A line of source that logs: file, line and level.
type SourceLine = (Option<&'static str>, Option<u32>, Level);

/// What each line of source has logged lately. The table is bounded by the number of these.
struct LineShares(Mutex<Option<HashMap<SourceLine, LineShare>>>);

struct LineShare {
    begun: Instant,
    lines: u32,
    left_out: u64,
    sample: String,
}

impl LineShares {
    /// Whether this line is still within the share of its line of source.
    fn take(&self, record: &Record<'_>, now: Instant) -> bool {
        let Some(at) = LEVELS.iter().position(|(level, _)| *level == record.level()) else {
            // Debug lines were asked for.
            return true;
        };
        if record.target().ends_with(LISTS) {
            return true;
        }
        let mut sources = self.0.lock();
        let share = sources
            .get_or_insert_default()
            .entry(source_line(record))
            .or_insert(LineShare {
                begun: now,
                lines: 0,
                left_out: 0,
                sample: String::new(),
            });
        if now.duration_since(share.begun) >= WINDOW {
            (share.begun, share.lines) = (now, 0);
        }
        if share.lines == SHARE {
            share.left_out += 1;
            LEFT_OUT[at].fetch_add(1, Ordering::Relaxed);
            return false;
        }
        share.lines += 1;
        true
    }

    /// Keeps a sample of the lines that are left out.
    fn note(&self, record: &Record<'_>, text: &str) {
        let mut sources = self.0.lock();
        if let Some(share) = sources.get_or_insert_default().get_mut(&source_line(record))
            && share.lines == SHARE
        {
            share.sample = cut(text, SAMPLE).into_owned();
        }
    }

    /// What was left out since the previous call: level, how many, and a sample.
    fn left_out(&self) -> Vec<(Level, u64, String)> {
        let mut sources = self.0.lock();
        let shares = sources.get_or_insert_default().iter_mut();
        let left_out = shares.filter(|(_, share)| share.left_out > 0);
        left_out
            .map(|((.., level), share)| (*level, std::mem::take(&mut share.left_out), share.sample.clone()))
            .collect()
    }
}

fn source_line(record: &Record<'_>) -> SourceLine {
    (record.file_static(), record.line(), record.level())
}

/// A line without what must not be in it: unreadable bytes of the network, values of tokens and passwords, places in
/// the sources of the TLS library, and what would end the line or reach the terminal of its reader.
fn clean(text: &str) -> String {
    let text = &*tls_words::reasons(text);
    let fields = SECRET_FIELDS.iter().filter_map(|field| {
        let at = find_ignoring_case(text, field)?;
        Some(at + field.len())
    });
    let quoted = text.find(QUOTED_INPUT).map(|at| at + QUOTED_INPUT.len());
    let (kept, hidden) = match fields.chain(quoted).min() {
        Some(end) => (&text[..end], "***"),
        None => (text, ""),
    };
    let kept = cut(kept, MAX_LINE);
    let words: Vec<_> = kept.split(' ').map(redaction::without_secrets).collect();
    let line = words.join(" ") + hidden;
    match line.chars().any(char::is_control) {
        true => line.chars().map(printable).collect(),
        false => line,
    }
}

fn find_ignoring_case(text: &str, word: &str) -> Option<usize> {
    let windows = text.as_bytes().windows(word.len());
    windows
        .into_iter()
        .position(|part| part.eq_ignore_ascii_case(word.as_bytes()))
}

fn printable(c: char) -> Cow<'static, str> {
    match c.is_control() {
        true => c.escape_default().to_string().into(),
        false => String::from(c).into(),
    }
}

/// The beginning of a text.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
    Cow::Owned(format!("{}…", &text[..end.unwrap_or_default()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_is_left_out() {
        let filter = || env_logger::Builder::new().parse_filters(FILTER).build();
        let log = |shown: &str| Diagnostics {
            shown: env_logger::Builder::new().parse_filters(shown).build(),
            libraries: Some(filter()),
            shares: Box::leak(Box::new(LineShares(Mutex::new(None)))),
        };
        let shows = |shown: &str, target: &str, level| {
            log(shown).enabled(&Metadata::builder().target(target).level(level).build())
        };
        for shown in [FILTER, "info", "trace"] {
            for target in [
                "pingora_core::connectors",
                "pingora_core::apps",
                "pingora_core::protocols::http::v1::common",
                "pingora_proxy",
            ] {
                assert!(!shows(shown, target, Level::Error), "{shown}: {target}");
            }
            assert!(shows(shown, "pingora_core::server", Level::Warn), "{shown}");
            assert!(!shows(shown, "pingora_core::server", Level::Info), "{shown}");
            assert!(!shows(shown, "hyper::proto", Level::Debug), "{shown}");
            assert!(shows(shown, "proxy_app::listener", Level::Info), "{shown}");
        }
        assert!(!shows("off", "pingora_core::server", Level::Error));
        assert!(shows("trace", "proxy_app::listener", Level::Debug));
    }

    #[test]
    fn lines_are_without_secrets() {
        for (text, expected) in [
            (
                "listening on 127.0.0.1:993 (Imap, TLS Implicit)",
                "listening on 127.0.0.1:993 (Imap, TLS Implicit)",
            ),
            (
                "no \"a b\" in /etc/x.yaml:3: zimbraId",
                "no \"a b\" in /etc/x.yaml:3: zimbraId",
            ),
            (
                "request 1: GET /home?fmt=ics&zauthtoken=0_abc&x=1, Host: a",
                "request 1: GET /home?fmt=ics&zauthtoken=***&x=1, Host: a",
            ),
            (
                "GET http://a/x;jsessionid=abc/y failed",
                "GET http://a/x;jsessionid=***/y failed",
            ),
            ("a password=secret here", "a password=*** here"),
            (
                "502: context: buf: HTTP/1.1 200 OK\\r\\nSet-Cookie: ZM_AUTH_TOKEN=abc cause: x",
                "502: context: buf: ***",
            ),
            ("got AUTHORIZATION: Basic YTpi and more", "got AUTHORIZATION:***"),
            (
                "a\r\nline \x1b[2J of \u{9b}ours",
                "a\\r\\nline \\u{1b}[2J of \\u{9b}ours",
            ),
        ] {
            assert_eq!(clean(text), expected);
        }
        assert!(clean(&"ü".repeat(MAX_LINE)).len() < MAX_LINE + 9);
    }

    #[test]
    fn each_place_has_its_share() {
        let (shares, begun) = (LineShares(Mutex::new(None)), Instant::now());
        let line = |line, target| {
            let mut builder = Record::builder();
            let builder = builder.file_static(Some("a.rs")).line(Some(line));
            builder.level(Level::Info).target(target).build()
        };
        let taken =
            |at: u32, target: &'static str, now| (0..1000).filter(|_| shares.take(&line(at, target), now)).count();
        assert_eq!(taken(1, "proxy_app::listener", begun), SHARE as usize);
        shares.note(&line(1, "proxy_app::listener"), "no TLS");
        assert_eq!(taken(2, "proxy_app::listener", begun), SHARE as usize);
        assert_eq!(taken(3, "proxy_app::list", begun), 1000);
        let mut left_out = shares.left_out();
        left_out.sort();
        assert_eq!(
            left_out,
            [
                (Level::Info, 950, String::new()),
                (Level::Info, 950, "no TLS".to_owned())
            ]
        );
        assert!(shares.left_out().is_empty());
        assert_eq!(taken(1, "proxy_app::listener", begun + WINDOW), SHARE as usize);
    }
}
