//! The audit log and the access log: lines to files or to standard output, written by threads of their own.
//!
//! A full disk or a stalled pipe must not hold up a login, so a writer takes lines from a bounded queue. What
//! does not fit is counted, and the count is logged as soon as there is room again.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use jiff::{Timestamp, ZonedDateTime};
use mail_proxy::Proto;
use mail_proxy::audit::{Event, Outcome, Record};
use serde::Serialize;

/// Lines that wait while the disk is slow: some seconds of a busy node.
const QUEUE: usize = 65_536;

/// How long a writer gathers lines before it writes them all at once. Waking it for each line would cost a busy
/// node more than all else that it does with a small request.
const GATHER: Duration = Duration::from_millis(20);

/// How long a writer leaves a disk alone that does not take its lines.
const FAILED: Duration = Duration::from_millis(100);

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogTarget {
    /// Nowhere (`off`).
    Off,
    /// Standard output (`-`).
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl LogTarget {
    /// Whether it can be written, as far as can be known without making a file: the user who tests a configuration may
    /// not be the one who will run it.
    ///
    /// # Errors
    /// The file is there and cannot be appended to.
    pub(crate) fn probe(&self) -> io::Result<()> {
        match self {
            Self::File(path) if path.exists() => append(path).map(drop),
            _ => Ok(()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// The file cannot be made or appended to.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        match self {
            Self::Off => Ok(Box::new(io::sink())),
            Self::Stdout => Ok(Box::new(io::stdout())),
            Self::File(path) => Ok(Box::new(append(path)?)),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

/// How often to check whether a file is still the one at its path.
const LOOK: Duration = Duration::from_secs(1);

/// One log: lines go in, a thread writes them.
#[derive(Clone)]
pub(crate) struct Log {
    /// `None` for a log that is off.
    queue: Option<SyncSender<Item>>,
    /// Lines that were lost since the process started.
    dropped: &'static AtomicU64,
}

enum Item {
    Line(String),
    /// From here on lines go elsewhere.
    Writer(Writer),
}

impl Log {
    /// Starts the writer. Must be called after the process has gone into the background: a fork keeps no threads.
    ///
    /// # Errors
    /// The target cannot be opened.
    pub(crate) fn start(name: &'static str, target: &LogTarget) -> io::Result<Self> {
        let writer = Writer::open(target)?;
        // A log lives as long as the process.
        let dropped: &'static AtomicU64 = Box::leak(Box::default());
        if *target == LogTarget::Off {
            return Ok(Self { queue: None, dropped });
        }
        let (queue, items) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name(format!("log {name}"))
            .spawn(move || write(name, writer, &items, dropped))?;
        Ok(Self {
            queue: Some(queue),
            dropped,
        })
    }

    /// Whether lines go anywhere.
    pub(crate) fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// How many lines were lost since the process started.
    pub(crate) fn lost(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Takes one line, without its end.
    pub(crate) fn line(&self, line: String) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Item::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets the lines from now on go to `target`, opened again: the file may have been renamed, or be another one.
    ///
    /// # Errors
    /// The target cannot be opened, the log was off when the process started, or its queue is full; then the lines go
    /// where they went.
    pub(crate) fn reopen(&self, target: &LogTarget) -> io::Result<()> {
        let Some(queue) = &self.queue else {
            return match target {
                LogTarget::Off => Ok(()),
                _ => Err(io::Error::other(
                    "it was off when the process started: needs an upgrade",
                )),
            };
        };
        let writer = Writer::open(target)?;
        let sent = queue.try_send(Item::Writer(writer));
        sent.map_err(|_| io::Error::other("too many lines wait to be written"))
    }
}

/// Where lines go, and whether that is still the place.
struct Writer {
    out: BufWriter<Box<dyn Write + Send>>,
    file: Option<LogFile>,
}

/// A file, as it was when it was opened and last checked.
struct LogFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    looked: Instant,
}

impl Writer {
    fn open(target: &LogTarget) -> io::Result<Self> {
        let out = BufWriter::new(target.open()?);
        let file = match target {
            LogTarget::File(path) => Some(LogFile {
                path: path.clone(),
                identity: identity(path),
                looked: Instant::now(),
            }),
            LogTarget::Off | LogTarget::Stdout => None,
        };
        Ok(Self { out, file })
    }

    /// Opens the file again if it was renamed or removed. So a process that lives on for a day after an upgrade, and
    /// gets no signal at a rotation, writes to the new file like all others.
    fn follow(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if file.looked.elapsed() < LOOK {
            return Ok(());
        }
        file.looked = Instant::now();
        if file.identity.is_some() && identity(&file.path) == file.identity {
            return Ok(());
        }
        let target = LogTarget::File(file.path.clone());
        *self = Self::open(&target)?;
        Ok(())
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

fn write(name: &str, mut writer: Writer, items: &Receiver<Item>, dropped: &AtomicU64) {
    let mut failing = false;
    let mut reported = 0;
    while let Ok(first) = items.recv() {
        std::thread::sleep(GATHER);
        let mut result = writer.follow();
        // As long as lines wait, they go out together.
        for item in std::iter::once(first).chain(items.try_iter()) {
            match item {
                Item::Line(line) => {
                    let written = writeln!(writer.out, "{line}");
                    if written.is_err() {
                        dropped.fetch_add(1, Ordering::Relaxed);
                    }
                    result = result.and(written);
                }
                Item::Writer(new) => {
                    result = result.and(writer.out.flush());
                    writer = new;
                }
            }
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > reported {
            let more = lost - reported;
            log::error!("{name} log: {more} lines were dropped because it cannot be written fast enough");
            reported = lost;
        }
        match result.and_then(|()| writer.out.flush()) {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    log::error!("{name} log: {error}");
                }
                failing = true;
                std::thread::sleep(FAILED);
            }
        }
    }
}

/// The audit log: one JSON line a record.
pub(crate) struct AuditLog(pub Log);

/// Room for nearly every record, so that its line need not grow.
const USUAL_RECORD: usize = 512;

#[derive(Serialize)]
struct Timed<'a> {
    time: String,
    #[serde(flatten)]
    record: &'a Record,
}

/// The audit log in one of its forms.
pub(crate) trait AuditForm: Send + Sync {
    /// Writes one record.
    fn write(&self, record: &Record);

    /// How many records were lost since the process started.
    fn lost(&self) -> u64;
}

impl AuditForm for AuditLog {
    fn write(&self, record: &Record) {
        self.0.line(json(Timestamp::now(), record));
    }

    fn lost(&self) -> u64 {
        self.0.lost()
    }
}

/// A record as the audit log has it, without the end of the line.
pub(crate) fn json(time: Timestamp, record: &Record) -> String {
    let time = utc(time);
    let mut line = Vec::with_capacity(USUAL_RECORD);
    let written = serde_json::to_writer(&mut line, &Timed { time, record });
    let written = written.map_err(|error| error.to_string());
    let line = written.and_then(|()| String::from_utf8(line).map_err(|error| error.to_string()));
    line.unwrap_or_else(|error| {
        // Plain texts and numbers: nothing of it can fail.
        log::error!("audit log: a record cannot be written: {error}");
        String::new()
    })
}

/// The audit log in the words of a Carbonio mailbox server's audit.log (MAIL §8.1), so that existing fail2ban
/// filters match. Only logins, guessed tokens and refused requests have a line there.
pub(crate) struct CarbonioLog(pub Log);

impl AuditForm for CarbonioLog {
    fn write(&self, record: &Record) {
        if let Some(line) = carbonio_line(record, &ZonedDateTime::now()) {
            self.0.line(line);
        }
    }

    fn lost(&self) -> u64 {
        self.0.lost()
    }
}

fn carbonio_line(record: &Record, now: &ZonedDateTime) -> Option<String> {
    let (command, outcome) = match (record.event?, record.outcome) {
        (Event::Login | Event::WebLogin, Some(outcome)) => ("Auth", outcome),
        (Event::Admin, Some(outcome)) => ("AdminAuth", outcome),
        (Event::Refused, _) => {
            let why = value(record.why.as_deref().unwrap_or_default());
            return Some(format!(
                "{} cmd=Refused; protocol=http; error={why};",
                origin(record, now, "WARN")
            ));
        }
        _ => return None,
    };
    // A token has no user; it belongs to its listener.
    let user = record.user.as_deref().unwrap_or(match command {
        "AdminAuth" => &record.listener,
        _ => "",
    });
    let error = match outcome {
        Outcome::Ok | Outcome::NotRefused => None,
        Outcome::BadCredentials => Some(format!("authentication failed for [{user}], invalid password")),
        Outcome::UnknownUser => Some(format!("authentication failed for [{user}], account not found")),
        Outcome::ClientGone if record.why.is_some() => Some("client_gone, counted".to_owned()),
        // Not the user's fault: in words that no filter takes for a guessed password.
        other => Some(other.name().to_owned()),
    };
    let level = if error.is_some() { "WARN" } else { "INFO" };
    let mut line = format!(
        "{} cmd={command}; account={}; protocol={};",
        origin(record, now, level),
        value(record.account.as_deref().unwrap_or(user)),
        match record.mechanism {
            Some("SOAP" | "JSON") => "soap",
            Some("BASIC") => "http_basic",
            _ => proto(record),
        },
    );
    if let Some(error) = error {
        line.push_str(&format!(" error={};", value(&error)));
    }
    Some(line)
}

/// The beginning of a line: when, on which connection, from where.
fn origin(record: &Record, now: &ZonedDateTime, level: &str) -> String {
    let peer = record.via.as_deref().unwrap_or(&record.client);
    format!(
        "{},{:03} {level:<5} [{}-{}] [ip={};oip={};cid={};] security -",
        now.strftime("%Y-%m-%d %H:%M:%S"),
        now.millisecond(),
        proto(record),
        record.conn,
        address(peer),
        address(&record.client),
        record.conn,
    )
}

fn proto(record: &Record) -> &'static str {
    record.proto.map_or("", Proto::name)
}

/// The address without its port.
fn address(with_port: &str) -> String {
    with_port
        .parse::<std::net::SocketAddr>()
        .map_or_else(|_| value(with_port), |address| address.ip().to_string())
}

/// A value between `=` and `;`: a semicolon is doubled; what is not printable, or would look like the next field, is a
/// blank.
fn value(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || c == '=' { ' ' } else { c })
        .collect::<String>()
        .replace(';', ";;")
}

/// The time as audit records have it: `2026-11-23T10:00:00.123Z`.
pub(crate) fn utc(time: Timestamp) -> String {
    thread_local! {
        static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let (second, millisecond) = (time.as_second(), time.subsec_millisecond());
    if time < Timestamp::UNIX_EPOCH {
        // Parts of a second before 1970 count backwards.
        return format!("{time:.3}");
    }
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second {
            *last = second;
            *text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        format!("{text}.{millisecond:03}Z")
    })
}

/// The time as access logs have it: `23/Nov/2026:10:00:00 +0000`.
///
/// Formatted once a second for each thread: a busy node writes thousands of lines in one.
pub(crate) fn local_time() -> String {
    thread_local! {
        static LAST: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let now = Timestamp::now();
    LAST.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *text = ZonedDateTime::now().strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
        }
        text.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_json_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new folder/audit.log");
        let log = AuditLog(Log::start("audit", &LogTarget::File(path.clone())).unwrap());
        log.write(&Record {
            event: Some(Event::Login),
            user: Some("a\r\nb\x1b\"".to_owned()),
            outcome: Some(Outcome::UnknownUser),
            ..Record::default()
        });
        let begun = Instant::now();
        let text = loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.ends_with('\n') || begun.elapsed() > Duration::from_secs(10) {
                break text;
            }
            std::thread::yield_now();
        };
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["outcome"], "unknown_user");
        assert_eq!(value["user"], "a\r\nb\u{1b}\"");
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn times_are_cut_to_milliseconds() {
        for (nanoseconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_428_000_123_999_999, "2026-11-23T10:00:00.123Z"),
            (1_795_428_000_007_000_000, "2026-11-23T10:00:00.007Z"),
            (1_795_428_001_000_000_000, "2026-11-23T10:00:01.000Z"),
            (-1_000_000, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(utc(Timestamp::from_nanosecond(nanoseconds).unwrap()), expected);
        }
    }

    #[test]
    fn a_log_follows_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old, other) = (
            dir.path().join("a.log"),
            dir.path().join("a.log.1"),
            dir.path().join("b.log"),
        );
        let log = Log::start("audit", &LogTarget::File(path.clone())).unwrap();
        let wait = |path: &Path, text: &str| {
            let begun = Instant::now();
            while !std::fs::read_to_string(path).is_ok_and(|all| all.contains(text)) {
                assert!(
                    begun.elapsed() < Duration::from_secs(10),
                    "no {text} in {}",
                    path.display()
                );
                log.line("again".to_owned());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        log.line("one".to_owned());
        wait(&path, "one");
        // Renamed, without a signal: the lines soon go to the new file.
        std::fs::rename(&path, &old).unwrap();
        wait(&path, "again");
        log.reopen(&LogTarget::File(other.clone())).unwrap();
        log.line("two".to_owned());
        wait(&other, "two");
        assert!(!std::fs::read_to_string(&path).unwrap().contains("two"));
        assert!(log.reopen(&LogTarget::File(dir.path().to_owned())).is_err());
    }

    #[test]
    fn a_full_disk_blocks_no_caller_and_lost_lines_are_counted() {
        let log = Log::start("test", &LogTarget::File(PathBuf::from("/dev/full"))).unwrap();
        let (begun, mut sent) = (Instant::now(), 0);
        while log.lost() == 0 {
            let one = Instant::now();
            log.line("x".repeat(100));
            sent += 1;
            assert!(one.elapsed() < Duration::from_secs(5), "a line waited for the disk");
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{sent} lines, and none is missed"
            );
        }
        assert!(log.lost() <= sent);
    }

    #[test]
    fn carbonio_lines() {
        let now: ZonedDateTime = "2026-01-02T10:00:01.004[UTC]".parse().unwrap();
        let mut record = Record {
            event: Some(Event::Login),
            conn: "7".to_owned(),
            proto: Some(Proto::Imap),
            client: "203.0.113.9:4711".to_owned(),
            via: Some("192.0.2.10:9".to_owned()),
            user: Some("ro;ssi\r\nx".to_owned()),
            outcome: Some(Outcome::UnknownUser),
            ..Record::default()
        };
        assert_eq!(
            carbonio_line(&record, &now).unwrap(),
            "2026-01-02 10:00:01,004 WARN  [imap-7] [ip=192.0.2.10;oip=203.0.113.9;cid=7;] security - cmd=Auth; \
             account=ro;;ssi  x; protocol=imap; error=authentication failed for [ro;;ssi  x], account not found;"
        );
        record.outcome = Some(Outcome::Ok);
        record.account = Some("rossi@example.com".to_owned());
        assert!(
            carbonio_line(&record, &now)
                .unwrap()
                .ends_with("account=rossi@example.com; protocol=imap;")
        );
        record.event = Some(Event::SessionEnd);
        assert_eq!(carbonio_line(&record, &now), None);
        let mut refused = Record {
            event: Some(Event::Refused),
            proto: Some(Proto::Http),
            client: "[2001:db8::1]:5".to_owned(),
            listener: "admin.http".to_owned(),
            why: Some("CONNECT".to_owned()),
            ..Record::default()
        };
        assert_eq!(
            carbonio_line(&refused, &now).unwrap(),
            "2026-01-02 10:00:01,004 WARN  [http-] [ip=2001:db8::1;oip=2001:db8::1;cid=;] security - cmd=Refused; \
             protocol=http; error=CONNECT;"
        );
        (refused.event, refused.outcome) = (Some(Event::Admin), Some(Outcome::BadCredentials));
        assert!(carbonio_line(&refused, &now).unwrap().ends_with(
            "cmd=AdminAuth; account=admin.http; protocol=http; \
             error=authentication failed for [admin.http], invalid password;"
        ));
        refused.outcome = None;
        assert_eq!(carbonio_line(&refused, &now), None);
    }
}
