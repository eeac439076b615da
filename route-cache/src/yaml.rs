//! A YAML document that knows its line numbers, and readers that say what is wrong with it and where.
//!
//! For files that people write: the node file and the YAML directory. All problems are collected, so that one
//! run of `portico check` shows them all. Not for data from the network, and not a serialiser.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// Longest text of a document. A directory of 100,000 accounts has about 20 MB.
pub const MAX_TEXT: usize = 64 * 1024 * 1024;
/// Deepest nesting. The node file needs 5; the reader of the tree is recursive in places.
pub const MAX_DEPTH: usize = 32;
/// Most nodes in a document, aliases and merges counted as often as they are used: a "billion laughs" ends here.
pub const MAX_NODES: usize = 8_000_000;
/// Longest file behind `!file`: a certificate with a long chain has 20 kB.
pub const MAX_FILE: u64 = 1024 * 1024;

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
            write!(f, "{}:", file.display())?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        f.write_str(&self.message)
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

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Problems) {
        self.0.extend(other.0);
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

    /// All of them in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// `value` if there is no error, with the warnings; else everything.
    pub fn or<T>(self, value: T) -> Result<(T, Problems), Problems> {
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

/// A parsed document: a tree of [`Node`]s.
#[derive(Debug)]
pub struct Document {
    origin: Arc<Path>,
    nodes: Vec<Raw>,
    root: usize,
}

/// A node of the tree as stored. `parent` and `step` together give its path.
#[derive(Debug)]
struct Raw {
    line: usize,
    parent: usize,
    step: Step,
    tag: Option<Box<str>>,
    /// How many collections stand inside each other from here on.
    height: usize,
    content: Content,
}

#[derive(Debug, Clone)]
enum Step {
    Root,
    Key(Box<str>),
    Index(usize),
}

#[derive(Debug, Clone)]
enum Content {
    Scalar { text: Box<str>, plain: bool },
    Sequence(Vec<usize>),
    Mapping { entries: Vec<usize>, duplicates: Vec<Duplicate> },
}

impl Content {
    fn children(&self) -> &[usize] {
        match self {
            Content::Scalar { .. } => &[],
            Content::Sequence(children) | Content::Mapping { entries: children, .. } => children,
        }
    }
}

/// A key that stood in its mapping already: the key, its line, and the line of the first.
#[derive(Debug, Clone)]
struct Duplicate {
    key: Box<str>,
    line: usize,
    first: usize,
}

impl Document {
    /// Parses one YAML document. `origin` is shown in problems, and relative paths start from its folder. An
    /// empty text is an empty mapping. Fails only where there is no tree: bad syntax, or a limit.
    pub fn parse(text: &str, origin: &Path) -> Result<Document, Problems> {
        let origin: Arc<Path> = Arc::from(origin);
        Builder::default()
            .build(text)
            .map(|(nodes, root)| Document { origin: origin.clone(), nodes, root })
            .map_err(|(line, message)| {
                let file = Some(origin);
                let severity = Severity::Error;
                Problems(vec![Problem { file, line: Some(line), key: String::new(), message, severity }])
            })
    }

    /// Reads and parses the file `path`.
    pub fn load(path: &Path) -> Result<Document, Problems> {
        let text = read_limited(path, MAX_TEXT as u64).map_err(|message| {
            let file = Some(Arc::from(path));
            let severity = Severity::Error;
            Problems(vec![Problem { file, line: None, key: String::new(), message, severity }])
        })?;
        Document::parse(&text, path)
    }

    /// The file this came from.
    pub fn origin(&self) -> &Arc<Path> {
        &self.origin
    }

    /// The outermost node.
    pub fn root(&self) -> Node<'_> {
        Node { document: self, index: self.root }
    }
}

/// A place in a [`Document`]. Copy it freely.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    document: &'a Document,
    index: usize,
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({}:{})", self.path(), self.line())
    }
}

impl<'a> Node<'a> {
    /// Path from the root: `listeners[2].tls`.
    pub fn path(&self) -> String {
        let mut steps = Vec::new();
        let mut raw = self.raw();
        while !matches!(raw.step, Step::Root) {
            steps.push(&raw.step);
            raw = &self.document.nodes[raw.parent];
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            match step {
                Step::Root => {}
                Step::Key(key) if path.is_empty() => path.push_str(key),
                Step::Key(key) => path.extend([".", key]),
                Step::Index(i) => path.push_str(&format!("[{i}]")),
            }
        }
        path
    }

    /// Line, counted from 1; for a value of a mapping the line of its key.
    pub fn line(&self) -> usize {
        self.raw().line
    }

    /// The file.
    pub fn origin(&self) -> &'a Arc<Path> {
        &self.document.origin
    }

    /// Adds an error about this node.
    pub fn error(&self, message: impl Into<String>, problems: &mut Problems) {
        self.problem(Severity::Error, message.into(), problems);
    }

    /// Adds a warning about this node.
    pub fn warning(&self, message: impl Into<String>, problems: &mut Problems) {
        self.problem(Severity::Warning, message.into(), problems);
    }

    /// True for nothing, `~` and `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.raw().content, Content::Scalar { text, plain: true } if is_null(text))
            && self.raw().tag.is_none()
    }

    /// The mapping here. Nothing at all reads as an empty one. Keys that stand twice are errors.
    pub fn mapping(&self, problems: &mut Problems) -> Option<Mapping<'a>> {
        let entries = match &self.raw().content {
            Content::Mapping { entries, duplicates } => {
                for duplicate in duplicates {
                    self.duplicate(duplicate, problems);
                }
                entries.as_slice()
            }
            _ if self.is_null() => &[],
            _ => return self.expected("a mapping (key: value)", problems),
        };
        self.refuse_tag(problems)?;
        let index = entries.iter().map(|&i| (self.key_of(i), i)).collect();
        Some(Mapping { node: *self, entries, index, taken: Vec::new(), asked: Vec::new() })
    }

    /// The items of the sequence here. Nothing at all reads as an empty one.
    pub fn items(&self, problems: &mut Problems) -> Option<Vec<Node<'a>>> {
        match &self.raw().content {
            Content::Sequence(items) => {
                self.refuse_tag(problems)?;
                Some(items.iter().map(|&index| self.at(index)).collect())
            }
            _ if self.is_null() => Some(Vec::new()),
            _ => self.expected("a list", problems),
        }
    }

    /// The items of the sequence here, or this node itself if it is a single value.
    pub fn one_or_many(&self, problems: &mut Problems) -> Option<Vec<Node<'a>>> {
        match self.raw().content {
            Content::Scalar { .. } if !self.is_null() => Some(vec![*self]),
            _ => self.items(problems),
        }
    }

    /// A text; numbers and booleans are taken as they are written.
    pub fn str(&self, problems: &mut Problems) -> Option<&'a str> {
        self.scalar("a text", problems)
    }

    /// A text, or the content of the file that `!file name` names (relative to this file).
    pub fn text(&self, problems: &mut Problems) -> Option<Cow<'a, str>> {
        match self.file(problems)? {
            None => self.str(problems).map(Cow::Borrowed),
            Some(path) => match read_limited(&path, MAX_FILE) {
                Ok(text) => Some(Cow::Owned(text)),
                Err(message) => {
                    self.error(message, problems);
                    None
                }
            },
        }
    }

    /// The path behind `!file`, or `Some(None)` if there is no such tag.
    pub fn file(&self, problems: &mut Problems) -> Option<Option<PathBuf>> {
        match (&self.raw().tag, &self.raw().content) {
            (Some(tag), Content::Scalar { text, .. }) if &**tag == "!file" => {
                if text.is_empty() {
                    return self.expected("the name of a file after !file", problems);
                }
                Some(Some(self.beside(text)))
            }
            _ => Some(None),
        }
    }

    /// A text or a list of texts.
    pub fn strs(&self, problems: &mut Problems) -> Option<Vec<&'a str>> {
        self.each(problems, Node::str)
    }

    /// `true` or `false`.
    pub fn bool(&self, problems: &mut Problems) -> Option<bool> {
        match self.scalar("true or false", problems)? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => self.expected("true or false", problems),
        }
    }

    /// A whole number from 0 to 65535.
    pub fn u16(&self, problems: &mut Problems) -> Option<u16> {
        self.number(problems)
    }

    /// A whole number from 0 to 4294967295.
    pub fn u32(&self, problems: &mut Problems) -> Option<u32> {
        self.number(problems)
    }

    /// A whole number.
    pub fn u64(&self, problems: &mut Problems) -> Option<u64> {
        self.number(problems)
    }

    /// A whole number.
    pub fn usize(&self, problems: &mut Problems) -> Option<usize> {
        self.number(problems)
    }

    /// A TCP port: 1 to 65535.
    pub fn port(&self, problems: &mut Problems) -> Option<u16> {
        match self.scalar("a port", problems)?.parse() {
            Ok(port) if port > 0 => Some(port),
            _ => self.expected("a port from 1 to 65535", problems),
        }
    }

    /// A duration with its unit: `200ms`, `3s`, `5m`, `1h`, `1d`.
    pub fn duration(&self, problems: &mut Problems) -> Option<Duration> {
        const WHAT: &str = "a duration such as 200ms, 3s, 5m, 1h or 1d";
        match duration(self.scalar(WHAT, problems)?) {
            Some(duration) => Some(duration),
            None => self.expected(WHAT, problems),
        }
    }

    /// A path; a relative one starts from the folder of this file. Whether it exists is not asked.
    pub fn path_buf(&self, problems: &mut Problems) -> Option<PathBuf> {
        match self.scalar("a path", problems)? {
            "" => self.expected("a path", problems),
            text => Some(self.beside(text)),
        }
    }

    /// An address with its port: `127.0.0.1:80`, `[::]:80`.
    pub fn socket_addr(&self, problems: &mut Problems) -> Option<SocketAddr> {
        const WHAT: &str = "an address with its port, such as 0.0.0.0:143 or [::]:143";
        match self.scalar(WHAT, problems)?.parse() {
            Ok(address) => Some(address),
            Err(_) => self.expected(WHAT, problems),
        }
    }

    /// A network: `10.0.0.0/8`, `fd00::/8`; a bare address is the network of that one address.
    pub fn network(&self, problems: &mut Problems) -> Option<IpNet> {
        const WHAT: &str = "a network such as 10.0.0.0/8, fd00::/8 or 192.0.2.1";
        match network(self.scalar(WHAT, problems)?) {
            Some(network) => Some(network),
            None => self.expected(WHAT, problems),
        }
    }

    /// A network or a list of them.
    pub fn networks(&self, problems: &mut Problems) -> Option<Vec<IpNet>> {
        self.each(problems, Node::network)
    }

    /// One of the words of `table`, and what it stands for. Exactly as written there.
    pub fn choice<T: Copy>(&self, table: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let text = self.scalar("a word", problems)?;
        if let Some((_, value)) = table.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
        self.expected(&format!("one of {}", words.join(", ")), problems)
    }

    /// Reads every item with `read`; one that cannot be read makes the whole list unreadable, after the
    /// problems of all items were collected.
    pub fn each<T>(
        &self,
        problems: &mut Problems,
        read: impl Fn(&Node<'a>, &mut Problems) -> Option<T>,
    ) -> Option<Vec<T>> {
        let values: Vec<_> = self.one_or_many(problems)?.iter().map(|item| read(item, problems)).collect();
        values.into_iter().collect()
    }

    /// This subtree as serde_yaml sees it, for types that bring their own `Deserialize` (Pingora's settings).
    /// Tags are left out.
    pub fn to_value(&self) -> serde_yaml::Value {
        use serde_yaml::Value;
        match &self.raw().content {
            Content::Scalar { text, plain: false } => Value::String(text.to_string()),
            Content::Scalar { text, .. } => plain_value(text),
            Content::Sequence(items) => items.iter().map(|&i| self.at(i).to_value()).collect(),
            Content::Mapping { entries, .. } => {
                let pairs = entries.iter().map(|&i| (Value::from(self.key_of(i)), self.at(i).to_value()));
                Value::Mapping(pairs.collect())
            }
        }
    }

    fn raw(&self) -> &'a Raw {
        &self.document.nodes[self.index]
    }

    fn at(&self, index: usize) -> Node<'a> {
        Node { document: self.document, index }
    }

    fn key_of(&self, index: usize) -> &'a str {
        match &self.document.nodes[index].step {
            Step::Key(key) => key,
            Step::Root | Step::Index(_) => "",
        }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.document.origin.parent().unwrap_or(Path::new("")).join(name)
    }

    fn problem(&self, severity: Severity, message: String, problems: &mut Problems) {
        let file = Some(self.origin().clone());
        problems.push(Problem { file, line: Some(self.line()), key: self.path(), message, severity });
    }

    fn duplicate(&self, duplicate: &Duplicate, problems: &mut Problems) {
        problems.push(Problem {
            file: Some(self.origin().clone()),
            line: Some(duplicate.line),
            key: join(&self.path(), &duplicate.key),
            message: format!("stands here twice; the first is in line {}", duplicate.first),
            severity: Severity::Error,
        });
    }

    /// Adds "expected …, found …" and gives `None`, so that readers can return it.
    fn expected<T>(&self, what: &str, problems: &mut Problems) -> Option<T> {
        let found = match &self.raw().content {
            Content::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Content::Scalar { text, .. } => format!("{:?}", shorten(text)),
            Content::Sequence(_) => "a list".to_owned(),
            Content::Mapping { .. } => "a mapping".to_owned(),
        };
        self.error(format!("expected {what}, found {found}"), problems);
        None
    }

    fn refuse_tag(&self, problems: &mut Problems) -> Option<()> {
        let Some(tag) = &self.raw().tag else {
            return Some(());
        };
        self.error(format!("the tag {tag} has no meaning here"), problems);
        None
    }

    fn scalar(&self, what: &str, problems: &mut Problems) -> Option<&'a str> {
        match &self.raw().content {
            Content::Scalar { text, .. } if !self.is_null() => {
                self.refuse_tag(problems)?;
                Some(text)
            }
            _ => self.expected(what, problems),
        }
    }

    fn number<T: std::str::FromStr + Bounded>(&self, problems: &mut Problems) -> Option<T> {
        let what = format!("a whole number from 0 to {}", T::MOST);
        match self.scalar(&what, problems)?.parse() {
            Ok(number) => Some(number),
            Err(_) => self.expected(&what, problems),
        }
    }
}

/// The greatest value of a number type, to name it in a message.
trait Bounded {
    const MOST: u64;
}

impl Bounded for u16 {
    const MOST: u64 = u16::MAX as u64;
}

impl Bounded for u32 {
    const MOST: u64 = u32::MAX as u64;
}

impl Bounded for u64 {
    const MOST: u64 = u64::MAX;
}

impl Bounded for usize {
    const MOST: u64 = usize::MAX as u64;
}

/// A mapping being read: what was not taken when [`Mapping::finish`] is called is unknown.
#[derive(Debug)]
pub struct Mapping<'a> {
    node: Node<'a>,
    entries: &'a [usize],
    index: HashMap<&'a str, usize>,
    taken: Vec<usize>,
    asked: Vec<String>,
}

impl<'a> Mapping<'a> {
    /// The node of the mapping itself.
    pub fn node(&self) -> Node<'a> {
        self.node
    }

    /// The value of `key`. `None` if the key is absent or has no value.
    pub fn take(&mut self, key: &str) -> Option<Node<'a>> {
        self.asked.push(key.to_owned());
        let index = *self.index.get(key)?;
        self.taken.push(index);
        Some(self.node.at(index)).filter(|node| !node.is_null())
    }

    /// Like [`Mapping::take`]; an absent key is an error.
    pub fn require(&mut self, key: &str, problems: &mut Problems) -> Option<Node<'a>> {
        let node = self.take(key);
        if node.is_none() {
            self.node.error(format!("{key} is missing"), problems);
        }
        node
    }

    /// Every key with its value, in the order of the file, for mappings whose keys are names. Nothing is taken.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> + use<'a> {
        let node = self.node;
        self.entries.iter().map(move |&index| (node.key_of(index), node.at(index)))
    }

    /// Every key that was not taken, as an error that names the nearest known key.
    pub fn finish(self, problems: &mut Problems) {
        for &index in self.entries.iter().filter(|index| !self.taken.contains(index)) {
            let node = self.node.at(index);
            let known = self.asked.iter().map(String::as_str);
            let hint = match nearest(self.node.key_of(index), known) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => "unknown key".to_owned(),
            };
            node.error(hint, problems);
        }
    }
}

/// A duration with its unit. `None` if it is not one.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let seconds = match &text[digits..] {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// A network, or a bare address as the network of one.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

/// The known name that `name` was probably meant to be: at most two slips away, and at most one in four letters.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_lowercase();
    let most = (name.chars().count() / 3).clamp(1, 2);
    known
        .map(|candidate| (slips(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn slips(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// At most 40 letters of a value, so that a certificate in the wrong place does not fill the screen.
fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(40) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// An unquoted scalar by the core schema of YAML 1.2, as far as serde types ask for it.
fn plain_value(text: &str) -> serde_yaml::Value {
    use serde_yaml::Value;
    if is_null(text) {
        return Value::Null;
    }
    match text {
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<u64>() {
        return Value::from(number);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::from(number);
    }
    match text.parse::<f64>() {
        Ok(number) if text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.') => number.into(),
        _ => Value::String(text.to_owned()),
    }
}

/// The text of a file of at most `most` bytes, or what went wrong.
fn read_limited(path: &Path, most: u64) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > most {
        return Err(format!("{} has {size} bytes, more than {most}", path.display()));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Builds the tree from the parser's events. Errors are the line and a message.
#[derive(Default)]
struct Builder {
    nodes: Vec<Raw>,
    open: Vec<Open>,
    anchors: HashMap<usize, usize>,
    root: Option<usize>,
}

/// A collection whose end has not come yet.
struct Open {
    line: usize,
    anchor: usize,
    tag: Option<Box<str>>,
    items: Vec<usize>,
    /// For a mapping: the key that waits for its value.
    mapping: Option<MappingState>,
}

#[derive(Default)]
struct MappingState {
    key: Option<(Box<str>, usize)>,
    lines: HashMap<Box<str>, usize>,
    duplicates: Vec<Duplicate>,
    merges: Vec<(usize, usize)>,
}

type Failed = (usize, String);

impl Builder {
    fn build(mut self, text: &str) -> Result<(Vec<Raw>, usize), Failed> {
        if text.len() > MAX_TEXT {
            return Err((1, format!("more than {MAX_TEXT} bytes")));
        }
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| (e.marker().line(), e.info().to_owned()))?;
            self.event(event, span)?;
        }
        let root = match self.root {
            Some(root) => root,
            None => self.push(1, None, Content::Mapping { entries: Vec::new(), duplicates: Vec::new() })?,
        };
        Ok((self.nodes, root))
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Failed> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(line, &text, style, anchor, tag),
            Event::SequenceStart(anchor, tag) => self.start(line, anchor, tag, None),
            Event::MappingStart(anchor, tag) => self.start(line, anchor, tag, Some(MappingState::default())),
            Event::SequenceEnd | Event::MappingEnd => self.end(line),
            Event::Alias(anchor) => self.alias(line, anchor),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err((line, "a second document begins here; one is enough".to_owned()))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn scalar(
        &mut self,
        line: usize,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
    ) -> Result<(), Failed> {
        if let Some(state) = self.key_wanted() {
            state.key = Some((Box::from(text), line));
            if anchor > 0 {
                return Err((line, "an anchor on a key is not supported".to_owned()));
            }
            return Ok(());
        }
        let plain = style == ScalarStyle::Plain;
        let index = self.push(line, name_of(tag), Content::Scalar { text: Box::from(text), plain })?;
        self.place(index, anchor, line)
    }

    fn start(
        &mut self,
        line: usize,
        anchor: usize,
        tag: Option<Cow<'_, Tag>>,
        mapping: Option<MappingState>,
    ) -> Result<(), Failed> {
        if self.key_wanted().is_some() {
            return Err((line, "a key must be a plain word".to_owned()));
        }
        if self.open.len() == MAX_DEPTH {
            return Err((line, format!("nested deeper than {MAX_DEPTH}")));
        }
        self.open.push(Open { line, anchor, tag: name_of(tag), items: Vec::new(), mapping });
        Ok(())
    }

    fn end(&mut self, line: usize) -> Result<(), Failed> {
        let Some(mut open) = self.open.pop() else {
            return Err((line, "an end without a beginning".to_owned()));
        };
        let content = match open.mapping.take() {
            None => Content::Sequence(open.items),
            Some(state) => self.merge(open.items, state)?,
        };
        let index = self.push(open.line, open.tag, content)?;
        self.adopt(index);
        self.place(index, open.anchor, line)
    }

    fn alias(&mut self, line: usize, anchor: usize) -> Result<(), Failed> {
        if self.key_wanted().is_some() {
            return Err((line, "an alias cannot be a key".to_owned()));
        }
        let Some(&original) = self.anchors.get(&anchor) else {
            return Err((line, "an alias inside of what it stands for".to_owned()));
        };
        let copy = self.copy(original, line)?;
        self.place(copy, 0, line)
    }

    /// The innermost mapping, if its next event is a key.
    fn key_wanted(&mut self) -> Option<&mut MappingState> {
        let state = self.open.last_mut()?.mapping.as_mut()?;
        state.key.is_none().then_some(state)
    }

    fn push(&mut self, line: usize, tag: Option<Box<str>>, content: Content) -> Result<usize, Failed> {
        if self.nodes.len() >= MAX_NODES {
            return Err((line, format!("more than {MAX_NODES} values, aliases counted")));
        }
        let height = content.children().iter().map(|&child| self.nodes[child].height + 1).max().unwrap_or(0);
        if height > MAX_DEPTH {
            return Err((line, format!("nested deeper than {MAX_DEPTH}, aliases counted")));
        }
        self.nodes.push(Raw { line, parent: 0, step: Step::Root, tag, height, content });
        Ok(self.nodes.len() - 1)
    }

    /// Puts a finished node where the open collection wants it.
    fn place(&mut self, index: usize, anchor: usize, line: usize) -> Result<(), Failed> {
        if anchor > 0 {
            self.anchors.insert(anchor, index);
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(index);
            return Ok(());
        };
        let Some(state) = &mut open.mapping else {
            self.nodes[index].step = Step::Index(open.items.len());
            open.items.push(index);
            return Ok(());
        };
        let Some((key, key_line)) = state.key.take() else {
            return Err((line, "a value without a key".to_owned()));
        };
        if &*key == "<<" {
            state.merges.push((index, key_line));
        } else if let Some(&first) = state.lines.get(&key) {
            state.duplicates.push(Duplicate { key, line: key_line, first });
        } else {
            state.lines.insert(key.clone(), key_line);
            self.nodes[index].step = Step::Key(key);
            self.nodes[index].line = key_line;
            open.items.push(index);
        }
        Ok(())
    }

    /// The end of a mapping: `<<` adds what is not there yet; earlier mappings win over later ones.
    fn merge(&mut self, mut entries: Vec<usize>, mut state: MappingState) -> Result<Content, Failed> {
        for (source, line) in std::mem::take(&mut state.merges) {
            for entry in self.merged_entries(source, line)? {
                let Step::Key(key) = self.nodes[entry].step.clone() else {
                    continue;
                };
                if state.lines.contains_key(&key) {
                    continue;
                }
                let copy = self.copy(entry, line)?;
                self.nodes[copy].step = Step::Key(key.clone());
                state.lines.insert(key, line);
                entries.push(copy);
            }
        }
        Ok(Content::Mapping { entries, duplicates: state.duplicates })
    }

    fn merged_entries(&self, source: usize, line: usize) -> Result<Vec<usize>, Failed> {
        match &self.nodes[source].content {
            Content::Mapping { entries, .. } => Ok(entries.clone()),
            Content::Sequence(items) => {
                let each: Result<Vec<_>, _> = items.iter().map(|&i| self.merged_entries(i, line)).collect();
                Ok(each?.concat())
            }
            Content::Scalar { .. } => Err((line, "<< wants a mapping or a list of mappings".to_owned())),
        }
    }

    /// A copy of a subtree, with the lines of the original. No deeper than [`MAX_DEPTH`], as no node is.
    fn copy(&mut self, original: usize, line: usize) -> Result<usize, Failed> {
        let tag = self.nodes[original].tag.clone();
        let mut content = self.nodes[original].content.clone();
        if let Content::Sequence(children) | Content::Mapping { entries: children, .. } = &mut content {
            for child in children {
                let step = self.nodes[*child].step.clone();
                *child = self.copy(*child, line)?;
                self.nodes[*child].step = step;
            }
        }
        let index = self.push(self.nodes[original].line, tag, content)?;
        self.adopt(index);
        Ok(index)
    }

    /// Tells the children of `index` who their parent is.
    fn adopt(&mut self, index: usize) {
        for child in self.nodes[index].content.children().to_vec() {
            self.nodes[child].parent = index;
        }
    }
}

/// A tag as it was written: `!file`. Tags of YAML itself (`!!str`) say nothing new to the readers here.
fn name_of(tag: Option<Cow<'_, Tag>>) -> Option<Box<str>> {
    let tag = tag?;
    if tag.is_yaml_core_schema() {
        return None;
    }
    Some(format!("{}{}", tag.handle, tag.suffix).into_boxed_str())
}
