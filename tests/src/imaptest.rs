//! imaptest, Dovecot's load generator and test program: found, run, read. It is not installed by `scripts/install`, because Debian has no
//! package of it.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The program: what `IMAPTEST` names, or what is on PATH.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("IMAPTEST") {
        return Some(path.into());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join("imaptest"))
        .find(|program| program.is_file())
}

/// What it did in a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How long it took.
    pub took: Duration,
    /// Logins.
    pub logins: u64,
    /// Mean time of a LOGIN, in milliseconds, since it last printed one: it does so after ten seconds.
    pub login_ms: f64,
}

/// Lets clients log in, select INBOX and log out, over and over.
///
/// # Errors
/// It cannot be run, found an error, or wrote something that we cannot read.
pub fn run(program: &Path, at: SocketAddrV4, users: &Path, password: &str, seconds: u64) -> Result<Outcome> {
    let args = [
        format!("host={}", at.ip()),
        format!("port={}", at.port()),
        format!("userfile={}", users.display()),
        format!("pass={password}"),
        "clients=20".to_owned(),
        format!("secs={seconds}"),
        // How mailboxes change is no concern of a proxy.
        "no_tracking".to_owned(),
        "-".to_owned(),
        "select=100".to_owned(),
    ];
    let begun = Instant::now();
    let out = Command::new(program)
        .args(&args)
        .output()
        .with_context(|| program.display().to_string())?;
    let took = begun.elapsed();
    let printed = String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned();
    ensure!(out.status.success(), "imaptest: {}\n{printed}", out.status);
    let (logins, login_ms) = read(&printed)?;
    Ok(Outcome { took, logins, login_ms })
}

/// The folder of its own test scripts: what `IMAPTEST_TESTS` names.
pub fn scripts() -> Option<PathBuf> {
    std::env::var_os("IMAPTEST_TESTS").map(PathBuf::from)
}

/// What came of a set of test scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What it counts: scripts that failed, or needed what the server does not list, and single commands.
    pub counts: Vec<String>,
    /// Names of scripts, and the commands of them that failed.
    pub failed: BTreeSet<String>,
}

/// Plays all scripts of a folder. They delete what is in the user's mailboxes.
///
/// # Errors
/// It cannot be run, or did not play all.
pub fn play(program: &Path, at: SocketAddrV4, user: &str, password: &str, scripts: &Path) -> Result<Verdict> {
    let out = Command::new("timeout")
        .arg("600")
        .arg(program)
        .args([format!("host={}", at.ip()), format!("port={}", at.port())])
        .args([format!("user={user}"), format!("pass={password}")])
        .arg(format!("test={}", scripts.display()))
        .output()
        .with_context(|| program.display().to_string())?;
    let printed = String::from_utf8_lossy(&[&out.stdout[..], b"\n", &out.stderr[..]].concat()).into_owned();
    verdict(&printed).with_context(|| format!("imaptest: {}\n{printed}", out.status))
}

/// Three lines of counts at the end, and a line for each command that has failed:
/// `*** Test NAME command 3/7 (line 12)`.
fn verdict(printed: &str) -> Result<Verdict> {
    let is_count = |line: &&str| line.contains(" test groups: ") || line.ends_with(" individual commands failed");
    let counts: Vec<String> = printed.lines().filter(is_count).map(str::to_owned).collect();
    ensure!(counts.len() == 3, "it has not played all scripts");
    let failed = printed.lines().filter_map(|line| line.strip_prefix("*** Test "));
    Ok(Verdict {
        counts,
        failed: failed.map(str::to_owned).collect(),
    })
}

/// Logins and the mean time of one. The last lines are: mean times by command, `Totals:`, the names of the commands,
/// how probable each was, and how many there were.
fn read(printed: &str) -> Result<(u64, f64)> {
    if let Some(line) = printed
        .lines()
        .find(|line| line.contains("Error:") || line.contains("Fatal:"))
    {
        bail!("imaptest: {line}");
    }
    let (before, totals) = printed
        .split_once("Totals:")
        .with_context(|| format!("imaptest printed no totals: {printed}"))?;
    let names = totals
        .lines()
        .find(|line| !line.trim().is_empty())
        .context("no commands")?;
    let at = names
        .split_whitespace()
        .position(|name| name == "Logi")
        .context("no Logi")?;
    let is_count = |line: &&str| {
        let mut words = line.split_whitespace().peekable();
        words.peek().is_some() && words.all(|word| word.parse::<u64>().is_ok())
    };
    let counts = totals.lines().find(is_count).context("no counts behind Totals")?;
    let times = before
        .lines()
        .rev()
        .find_map(|line| line.trim_end().strip_suffix("ms/cmd avg"))
        .context("no mean times")?;
    let word = |line: &str| {
        line.split_whitespace()
            .nth(at)
            .map(str::to_owned)
            .context("too few columns")
    };
    Ok((word(counts)?.parse()?, word(times)?.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was posted to Dovecot's mailing list (2017-01-25, "Benchmarking auth"): `- select=0`, interrupted.
    const LOGINS_ONLY: &str = " - 100 stalled for 17 secs in command: 1 LOGIN \"test\" \"testpw\"
^CInfo: Received second SIGINT - stopping immediately
11347  118 ms/cmd avg

Totals:
Logi Logo 
100% 100% 
 130  134 
";

    #[test]
    fn reads_what_it_prints() {
        assert_eq!(read(LOGINS_ONLY).unwrap(), (130, 11347.0));
        // With a repeated command there is a line more, and rows of each second before.
        let more = "Logi List Appe Logo \n100%  50% 100% 100% \n            5%      \n 524  262   63   24  5/  5\n\
                    \x20  7    1    2    3 ms/cmd avg\n\nTotals:\nLogi List Appe Logo \n100%  50% 100% 100% \n            5%      \n\
                    \x20600  300   70   90 \n";
        assert_eq!(read(more).unwrap(), (600, 7.0));
    }

    #[test]
    fn reads_what_came_of_scripts() {
        let printed = "71 test groups: 1 failed, 9 skipped due to missing capabilities\n\
                       base protocol: 1/382 individual commands failed\nextensions: 0/50 individual commands failed\n\
                       *** Test list command 2/9 (line 14)\n - failed: Missing 1 untagged replies\n - Command: list\n";
        let found = verdict(printed).unwrap();
        assert_eq!(
            found.counts[0],
            "71 test groups: 1 failed, 9 skipped due to missing capabilities"
        );
        assert_eq!(found.failed, BTreeSet::from(["list command 2/9 (line 14)".to_owned()]));
        assert!(verdict(&printed[..100]).is_err());
    }

    #[test]
    fn an_error_is_not_taken_for_a_result() {
        let complained = format!("Error: user1[1]: LOGIN failed\n{LOGINS_ONLY}");
        assert!(read(&complained).unwrap_err().to_string().contains("LOGIN failed"));
        let (cut, _) = LOGINS_ONLY.split_once("Totals").unwrap();
        assert!(read(cut).is_err());
    }
}
