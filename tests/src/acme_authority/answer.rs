//! HTTP as the authority speaks it: one request for each connection, answers, and problems (RFC 7807).

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Most of a body that is read: a request for a certificate of a hundred names has some 10 KiB.
const BODY_MAX: u64 = 64 * 1024;
/// How all kinds of problems begin (RFC 8555 §6.7).
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// A request.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

/// Why a request is not done.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) detail: String,
    /// Names that it is about, each with the kind of its own problem (§6.7.1).
    pub(super) names: Vec<(String, &'static str)>,
    /// In seconds.
    pub(super) retry_after: Option<u64>,
    /// Whether a client that keeps to the protocol never gets it.
    pub(super) is_violation: bool,
}

impl Request {
    /// Reads one.
    pub(super) fn read(from: &mut impl Read) -> Result<Self> {
        let mut from = BufReader::new(from);
        let first = line(&mut from)?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().context("no target")?);
        let mut fields = Vec::new();
        while let Some((name, value)) = line(&mut from)?.split_once(':') {
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Self {
            method,
            path,
            fields,
            body: Vec::new(),
        };
        let length: u64 = request.field("content-length").unwrap_or("0").parse()?;
        ensure!(length <= BODY_MAX, "a body of {length} bytes");
        request.body = vec![0; usize::try_from(length)?];
        from.read_exact(&mut request.body)?;
        Ok(request)
    }

    /// A field of its head.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    from.take(BODY_MAX).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8(line)?.trim_end().to_owned())
}

impl Answer {
    /// An object.
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self::of(status, "application/json", body.to_string())
    }

    /// Anything.
    pub(super) fn of(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            fields: vec![("Content-Type", kind.to_owned())],
            body: body.into(),
        }
    }

    /// The same with a field more.
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }

    /// Writes it. The connection ends behind it.
    pub(super) fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut head = format!("HTTP/1.1 {} answer\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.status != 204 {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        to.write_all(head.as_bytes())?;
        to.write_all(&self.body)?;
        Ok(to.flush()?)
    }
}

impl Refusal {
    /// What the authority refuses as it may.
    pub(super) fn new(status: u16, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
            names: Vec::new(),
            retry_after: None,
            is_violation: false,
        }
    }

    /// What a client that keeps to the protocol never hears.
    pub(super) fn violation(status: u16, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            is_violation: true,
            ..Self::new(status, kind, detail)
        }
    }

    /// The commonest of them.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::violation(400, "malformed", detail)
    }

    /// As an object (RFC 7807).
    pub(super) fn problem(&self) -> Value {
        let kind = |kind: &str| format!("{PROBLEM}{kind}");
        let names = self.names.iter().map(|(name, why)| {
            json!({"type": kind(why), "detail": format!("not {name}"),
                   "identifier": {"type": "dns", "value": name}})
        });
        let mut problem = json!({"type": kind(self.kind), "detail": self.detail, "status": self.status});
        if !self.names.is_empty() {
            problem["subproblems"] = names.collect();
        }
        problem
    }

    /// As an answer.
    pub(super) fn answer(&self) -> Answer {
        let body = self.problem().to_string();
        let answer = Answer::of(self.status, "application/problem+json", body);
        match self.retry_after {
            Some(seconds) => answer.with("Retry-After", seconds),
            None => answer,
        }
    }
}
