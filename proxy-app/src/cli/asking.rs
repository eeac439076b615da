//! How the running process is asked over its admin socket, and how its answers are printed: what all verbs share.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use mail_directory::yaml;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::cli::admin_client::AdminClient;
use crate::config;

/// Width of the words in front of the sentences.
const LABEL: usize = 11;

/// How to reach the running process.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// The admin socket of the running process [default: admin.socket of the node file].
    #[arg(long, value_name = "FILE", global = true)]
    pub socket: Option<PathBuf>,
    /// Print the response as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Prints to standard output. Its reader may have closed it.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

impl ApiArgs {
    pub(super) fn client(&self, conf: &Path) -> anyhow::Result<AdminClient> {
        if let Some(socket) = &self.socket {
            return Ok(AdminClient::new(socket));
        }
        let socket = config::admin_socket(conf).map_err(|problems| {
            let first = problems.iter().next().map(ToString::to_string);
            anyhow::anyhow!("{}", first.unwrap_or_default())
        })?;
        let missing = || format!("{} names no admin.socket; use --socket", conf.display());
        Ok(AdminClient::new(&socket.with_context(missing)?))
    }

    pub(super) fn show<T: Serialize>(&self, answer: &T, text: impl Fn(&T) -> String) -> anyhow::Result<String> {
        match self.json {
            true => Ok(serde_json::to_string_pretty(answer)? + "\n"),
            false => Ok(text(answer)),
        }
    }
}

/// A path with the parameters that have a value.
pub(super) fn path_with<const N: usize>(path: &str, fields: [(&str, Option<String>); N]) -> String {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let pairs: Vec<String> = fields
        .map(|(name, value)| format!("{name}={}", encoded(&value)))
        .collect();
    match pairs.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", pairs.join("&")),
    }
}

/// A name as a part of a path.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// How long something is to last: `90s`, `30m`, `1h`, `2d`.
pub(super) fn lasting(text: &str) -> Result<Duration, String> {
    yaml::duration(text).ok_or_else(|| "expected a time such as 90s, 30m, 1h or 2d".to_owned())
}

/// Lines of a word and a sentence.
#[derive(Default)]
pub(super) struct Lines(String);

impl Lines {
    pub(super) fn into_text(self) -> String {
        self.0
    }

    pub(super) fn line(&mut self, label: &str, sentence: impl AsRef<str>) {
        let _fits = writeln!(self.0, "{label:LABEL$} {}", printable(sentence.as_ref()));
    }
}

/// Names come from the network: nothing of them may move the cursor of a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Columns as wide as their widest value.
pub(super) fn table(rows: &[impl AsRef<[String]>]) -> String {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row
            .as_ref()
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{:width$}", printable(cell)));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _fits = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("30m", Some(1_800)),
            ("1h", Some(3_600)),
            ("2d", Some(172_800)),
            ("h", None),
            ("", None),
            ("-1h", None),
            ("1w", None),
            ("99999999999999999999d", None),
            ("1\u{fc}", None),
        ] {
            assert_eq!(lasting(text).ok().map(|time| time.as_secs()), expected, "{text}");
        }
    }
}
