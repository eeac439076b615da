//! What is wrong with a file or an entry, and where. One form for the node file and the directory.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// What was written cannot be used.
    Error,
    /// What was written can be used, but hardly says what was meant.
    Warning,
}

/// One thing that is wrong with a file or an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, or `None` for an entry that comes from LDAP.
    pub file: Option<Arc<Path>>,
    /// Line in the file, counted from 1.
    pub line: Option<usize>,
    /// Path of the key (`listeners[2].tls`) or the entry and attribute; empty for the whole file.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", OneLine(&file.to_string_lossy()))?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", OneLine(&self.key))?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        OneLine(&self.message).fmt(f)
    }
}

/// Text from outside in one line: characters that would end the line or act on the reader's terminal are escaped.
#[derive(Debug, Clone, Copy)]
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(char::is_control) {
            match part.chars().next_back().filter(|last| last.is_control()) {
                Some(last) => write!(f, "{}{}", &part[..part.len() - last.len_utf8()], last.escape_default())?,
                None => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

/// All problems found so far. As an error it displays one problem per line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// No problems yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One error about a file as a whole, or one of its lines.
    pub fn of_file(file: &Path, line: Option<usize>, message: impl Into<String>) -> Self {
        let file = Some(Arc::from(file));
        Self(vec![Problem {
            file,
            line,
            key: String::new(),
            message: message.into(),
            severity: Severity::Error,
        }])
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Puts them in the order of the file, those without a line first.
    pub fn sort(&mut self) {
        self.0.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    }

    /// True if there is neither an error nor a warning.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many, warnings included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if at least one is an error.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }

    /// The first that is an error, as it is displayed.
    pub fn first_error(&self) -> String {
        let error = self.0.iter().find(|p| p.severity == Severity::Error);
        error.map(Problem::to_string).unwrap_or_default()
    }

    /// All of them in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// `value` if there is no error, with the warnings; else all problems.
    pub fn or<T>(self, value: T) -> Result<(T, Self), Self> {
        if self.has_errors() {
            return Err(self);
        }
        Ok((value, self))
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// An error that belongs to a key and not to a line.
pub fn problem(key: &str, message: impl ToString) -> Problem {
    Problem {
        file: None,
        line: None,
        key: key.to_owned(),
        message: message.to_string(),
        severity: Severity::Error,
    }
}

/// A warning that belongs to a key and not to a line.
pub fn warning(key: String, message: impl ToString) -> Problem {
    Problem {
        file: None,
        line: None,
        key,
        message: message.to_string(),
        severity: Severity::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_and_moves_no_cursor() {
        let problem = Problem {
            file: Some(Arc::from(Path::new("a\nb.yaml"))),
            line: Some(3),
            key: "domains.\u{1b}[2J\r\u{9b}x ü".to_owned(),
            message: "no\u{7f}\tgood\n".to_owned(),
            severity: Severity::Warning,
        };
        assert_eq!(
            problem.to_string(),
            r"a\nb.yaml:3: domains.\u{1b}[2J\r\u{9b}x ü: warning: no\u{7f}\tgood\n"
        );
    }
}
