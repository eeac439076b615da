//! A YAML document that knows its line numbers, and readers that report what is wrong with it and where.
//!
//! For files that administrators write: the node file and the YAML directory. All problems are collected, so that one
//! run of `portico check` shows them all. Not for data from the network, and not a serialiser.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub(crate) mod layout;
mod problem;
mod tree;

use crate::secret_file;
pub use problem::{Problem, Problems, Severity, problem, warning};
use tree::{Builder, Duplicate, NodeContent, Passing, Raw, Step};

/// Longest text of a document. A directory of 100,000 accounts has about 20 MB.
pub const MAX_TEXT: usize = 64 * 1024 * 1024;
/// Deepest nesting. The node file needs 5; the reader of the tree is recursive in places.
pub const MAX_DEPTH: usize = 32;
/// Most nodes in a document, aliases and merges counted as often as they are used: a "billion laughs" ends here.
/// 200,000 accounts have 1.6 million.
pub const MAX_NODES: usize = 2_000_000;
/// Longest file behind `!file`: a certificate with a long chain has 20 kB.
pub const MAX_FILE: u64 = 1024 * 1024;

/// A parsed document: a tree of [`Node`]s.
pub struct Document {
    origin: Arc<Path>,
    nodes: Vec<Raw>,
    root: usize,
    has_anchors: bool,
    last_line_ends: bool,
    outline: Outline,
}

/// What tells whether another text is this one without its last lines: a checksum of everything up to each line's end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline(Vec<u32>);

impl Outline {
    fn of(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        let lines = text.split_inclusive('\n').map(|line| {
            hasher.write(line.as_bytes());
            hasher.finish() as u32
        });
        Self(lines.collect())
    }

    /// Whether a text with this outline is that of `whole` without its last lines.
    pub fn is_beginning_of(&self, whole: &Self) -> bool {
        self.0.len() < whole.0.len() && !self.0.is_empty() && whole.0.starts_with(&self.0)
    }
}

impl Document {
    /// Parses one YAML document. `origin` is shown in problems, and relative paths start from its folder. An
    /// empty text is an empty mapping. Fails only where there is no tree: bad syntax, or a limit.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, Problems> {
        Self::build(Builder::default(), text, origin)
    }

    /// The same, but shows the entries of the mapping `key` at the root one by one, and does not keep them: there may
    /// be hundreds of thousands. What has an anchor, or comes by a merge, stays in the document.
    pub(crate) fn parse_each(text: &str, origin: &Path, key: &str, each: Each<'_>) -> Result<Self, Problems> {
        let passing = Passing {
            origin: Arc::from(origin),
            key,
            each,
        };
        Self::build(Builder::passing(passing), text, origin)
    }

    fn build(builder: Builder<'_>, text: &str, origin: &Path) -> Result<Self, Problems> {
        match builder.build(text) {
            Ok(built) => Ok(Self {
                origin: Arc::from(origin),
                nodes: built.nodes,
                root: built.root,
                has_anchors: built.has_anchors,
                last_line_ends: text.ends_with(layout::BREAKS),
                outline: Outline::of(text),
            }),
            Err((line, message)) => Err(Problems::of_file(origin, Some(line), message)),
        }
    }

    /// Reads and parses the file `path`.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match read_limited(path, MAX_TEXT as u64) {
            Ok(text) => Self::parse(&text, path),
            Err(message) => Err(Problems::of_file(path, None, message)),
        }
    }

    /// The same as [`Document::parse_each`], with the file `path`.
    pub(crate) fn load_each(path: &Path, key: &str, each: Each<'_>) -> Result<Self, Problems> {
        match read_limited(path, MAX_TEXT as u64) {
            Ok(text) => Self::parse_each(&text, path, key, each),
            Err(message) => Err(Problems::of_file(path, None, message)),
        }
    }

    /// Whether something in it can be referred to from elsewhere.
    pub(crate) fn has_anchors(&self) -> bool {
        self.has_anchors
    }

    /// What tells whether another text is the beginning of this one.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Whether the last line of the text has an end. That of a file that was cut off mostly has none.
    pub fn last_line_ends(&self) -> bool {
        self.last_line_ends
    }

    /// The file this came from.
    pub fn origin(&self) -> &Arc<Path> {
        &self.origin
    }

    /// The outermost node.
    pub fn root(&self) -> Node<'_> {
        Node {
            document: self,
            index: self.root,
        }
    }
}

/// The content is left out: a file behind `!file` is not in it, but a private key may be.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({}, {} nodes)", self.origin.display(), self.nodes.len())
    }
}

/// Receives the key and the value of an entry.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&str, Node<'_>);

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

    /// Its key, if it is the value of a mapping.
    fn key(&self) -> &'a str {
        self.key_of(self.index)
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
        matches!(&self.raw().content, NodeContent::Scalar { text, plain: true } if is_null(text))
            && self.raw().tag.is_none()
    }

    /// True for a mapping that is written as one.
    pub fn is_mapping(&self) -> bool {
        matches!(self.raw().content, NodeContent::Mapping { .. })
    }

    /// The mapping here. Nothing at all reads as an empty one. Keys that stand twice are errors.
    pub fn mapping(&self, problems: &mut Problems) -> Option<Mapping<'a>> {
        let entries = match &self.raw().content {
            NodeContent::Mapping { entries, duplicates } => {
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
        Some(Mapping {
            node: *self,
            entries,
            index,
            taken: Vec::new(),
            asked: Vec::new(),
        })
    }

    /// The items of the sequence here. Nothing at all reads as an empty one.
    pub fn items(&self, problems: &mut Problems) -> Option<Vec<Self>> {
        match &self.raw().content {
            NodeContent::Sequence(items) => {
                self.refuse_tag(problems)?;
                Some(items.iter().map(|&index| self.at(index)).collect())
            }
            _ if self.is_null() => Some(Vec::new()),
            _ => self.expected("a list", problems),
        }
    }

    /// The items of the sequence here, or this node itself if it is a single value.
    pub fn one_or_many(&self, problems: &mut Problems) -> Option<Vec<Self>> {
        match self.raw().content {
            NodeContent::Scalar { .. } if !self.is_null() => Some(vec![*self]),
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
                Ok(text) => {
                    let open = secret_file::warning(&path).filter(|_| text.contains(secret_file::PRIVATE_KEY));
                    if let Some(message) = open {
                        self.warning(message, problems);
                    }
                    Some(Cow::Owned(text))
                }
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
            (Some(tag), NodeContent::Scalar { text, .. }) if &**tag == "!file" => {
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

    /// A path; a relative one starts from the folder of this file. Whether it exists is not checked.
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
    pub fn each<T>(&self, problems: &mut Problems, read: impl Fn(&Self, &mut Problems) -> Option<T>) -> Option<Vec<T>> {
        let values: Vec<_> = self
            .one_or_many(problems)?
            .iter()
            .map(|item| read(item, problems))
            .collect();
        values.into_iter().collect()
    }

    /// This subtree as serde_yaml sees it, for types with their own `Deserialize` (Pingora's settings). Tags are left
    /// out.
    pub fn to_value(&self) -> serde_yaml::Value {
        use serde_yaml::Value;
        match &self.raw().content {
            NodeContent::Scalar { text, plain: false } => Value::String(text.to_string()),
            NodeContent::Scalar { text, .. } => plain_value(text),
            NodeContent::Sequence(items) => items.iter().map(|&i| self.at(i).to_value()).collect(),
            NodeContent::Mapping { entries, .. } => {
                let pairs = entries
                    .iter()
                    .map(|&i| (Value::from(self.key_of(i)), self.at(i).to_value()));
                Value::Mapping(pairs.collect())
            }
        }
    }

    fn raw(&self) -> &'a Raw {
        &self.document.nodes[self.index]
    }

    fn at(&self, index: usize) -> Self {
        Node {
            document: self.document,
            index,
        }
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
        problems.push(Problem {
            file,
            line: Some(self.line()),
            key: self.path(),
            message,
            severity,
        });
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

    /// Adds "expected …, found …" and returns `None`, so that readers can return it.
    fn expected<T>(&self, what: &str, problems: &mut Problems) -> Option<T> {
        let found = match &self.raw().content {
            NodeContent::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            NodeContent::Scalar { text, .. } => format!("{:?}", shorten(text)),
            NodeContent::Sequence(_) => "a list".to_owned(),
            NodeContent::Mapping { .. } => "a mapping".to_owned(),
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
            NodeContent::Scalar { text, .. } if !self.is_null() => {
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
    const MOST: u64 = Self::MAX as u64;
}

impl Bounded for u32 {
    const MOST: u64 = Self::MAX as u64;
}

impl Bounded for u64 {
    const MOST: Self = Self::MAX;
}

impl Bounded for usize {
    const MOST: u64 = Self::MAX as u64;
}

/// A mapping being read: keys that were not taken when [`Mapping::finish`] is called are unknown.
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
        self.entries
            .iter()
            .map(move |&index| (node.key_of(index), node.at(index)))
    }

    /// Every key that was not taken yet, with its value.
    pub(crate) fn strangers(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> + '_ {
        let left = self.entries.iter().filter(|index| !self.taken.contains(index));
        left.map(|&index| (self.node.key_of(index), self.node.at(index)))
    }

    /// Every key that was not taken, as an error that names the nearest known key.
    pub fn finish(self, problems: &mut Problems) {
        for (key, node) in self.strangers() {
            let known = self.asked.iter().map(String::as_str);
            let hint = match nearest(key, known) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => "unknown key".to_owned(),
            };
            node.error(hint, problems);
        }
    }
}

/// A duration with its unit: `200ms`, `3s`, `5m`, `1h`, `1d`. `None` if it is not one.
pub fn duration(text: &str) -> Option<Duration> {
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
    text.parse()
        .ok()
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
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
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
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

/// The text of a file of at most `most` bytes, or what went wrong. Reads no further than that: the size of a
/// device or a pipe is not known before.
fn read_limited(path: &Path, most: u64) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > most {
        return Err(format!("{} has more than {most} bytes", path.display()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Document {
        Document::parse(text, Path::new("conf/p.yaml")).unwrap()
    }

    /// Reads the value of `k` with `read`: the value, or the problems as shown to the user.
    fn check<T>(text: &str, read: impl Fn(Node<'_>, &mut Problems) -> Option<T>) -> Result<T, String> {
        let document = parse(text);
        let mut problems = Problems::new();
        let mut mapping = document.root().mapping(&mut problems).unwrap();
        let value = mapping.take("k").and_then(|node| read(node, &mut problems));
        mapping.finish(&mut problems);
        value.filter(|_| problems.is_empty()).ok_or(problems.to_string())
    }

    #[test]
    fn values_are_read_by_type() {
        let seconds = Duration::from_secs;
        assert_eq!(
            check("k: hello", |n, p| n.str(p).map(str::to_owned)),
            Ok("hello".to_owned())
        );
        assert_eq!(check("k: 12", |n, p| n.str(p).map(str::to_owned)), Ok("12".to_owned()));
        assert_eq!(check("k: true", |n, p| n.bool(p)), Ok(true));
        assert_eq!(check("k: 65535", |n, p| n.u16(p)), Ok(65535));
        assert_eq!(check("k: 4294967295", |n, p| n.u32(p)), Ok(u32::MAX));
        assert_eq!(check("k: 7", |n, p| n.usize(p)), Ok(7));
        assert_eq!(check("k: 993", |n, p| n.port(p)), Ok(993));
        for (text, duration) in [
            ("200ms", Duration::from_millis(200)),
            ("3s", seconds(3)),
            ("5m", seconds(300)),
            ("1h", seconds(3600)),
            ("1d", seconds(86400)),
        ] {
            assert_eq!(check(&format!("k: {text}"), |n, p| n.duration(p)), Ok(duration));
        }
        assert_eq!(
            check("k: [a, b]", |n, p| Some(n.strs(p)?.concat())),
            Ok("ab".to_owned())
        );
        assert_eq!(check("k: a", |n, p| Some(n.strs(p)?.concat())), Ok("a".to_owned()));
        assert_eq!(check("k: x/y", |n, p| n.path_buf(p)), Ok(PathBuf::from("conf/x/y")));
        assert_eq!(check("k: /x", |n, p| n.path_buf(p)), Ok(PathBuf::from("/x")));
        assert_eq!(
            check("k: '[::]:80'", |n, p| n.socket_addr(p)),
            Ok("[::]:80".parse().unwrap())
        );
        assert_eq!(
            check("k: 10.0.0.0/8", |n, p| n.network(p)),
            Ok("10.0.0.0/8".parse().unwrap())
        );
        assert_eq!(
            check("k: 192.0.2.1", |n, p| n.network(p)),
            Ok("192.0.2.1/32".parse().unwrap())
        );
        assert_eq!(check("k: b", |n, p| n.choice(&[("a", 1), ("b", 2)], p)), Ok(2));
    }

    #[test]
    fn wrong_values_name_key_line_and_what_was_expected() {
        let shown = |text: &str| format!("conf/p.yaml:1: k: {text}");
        let wrong = |text: &str, message: &str, read: fn(Node<'_>, &mut Problems) -> Option<()>| {
            assert_eq!(check(text, read), Err(shown(message)), "{text}");
        };
        wrong("k: [1]", "expected a text, found a list", |n, p| n.str(p).map(drop));
        wrong("k: yes", "expected true or false, found \"yes\"", |n, p| {
            n.bool(p).map(drop)
        });
        wrong(
            "k: 65536",
            "expected a whole number from 0 to 65535, found \"65536\"",
            |n, p| n.u16(p).map(drop),
        );
        wrong(
            "k: -1",
            "expected a whole number from 0 to 4294967295, found \"-1\"",
            |n, p| n.u32(p).map(drop),
        );
        wrong("k: 0", "expected a port from 1 to 65535, found \"0\"", |n, p| {
            n.port(p).map(drop)
        });
        for bad in ["3", "3 s", "s", "3w", "-3s", "99999999999999999999s"] {
            let message = format!("expected a duration such as 200ms, 3s, 5m, 1h or 1d, found {bad:?}");
            wrong(&format!("k: {bad}"), &message, |n, p| n.duration(p).map(drop));
        }
        wrong("k: {a: 1}", "expected a list, found a mapping", |n, p| {
            n.strs(p).map(drop)
        });
        wrong(
            "k: 10/8",
            "expected a network such as 10.0.0.0/8, fd00::/8 or 192.0.2.1, found \"10/8\"",
            |n, p| n.networks(p).map(drop),
        );
        wrong("k: c", "expected one of a, b, found \"c\"", |n, p| {
            n.choice(&[("a", 1), ("b", 2)], p).map(drop)
        });
        wrong("k: !what x", "the tag !what has no meaning here", |n, p| {
            n.str(p).map(drop)
        });
        wrong("k: x", "expected a mapping (key: value), found \"x\"", |n, p| {
            n.mapping(p).map(drop)
        });
    }

    #[test]
    fn all_problems_are_found_at_once_with_their_paths() {
        let document = parse("a: 1\nlisteners:\n  - {tls: x}\n  -\n    tls: y\n    prot: 1\na: 2\n");
        let mut problems = Problems::new();
        let mut root = document.root().mapping(&mut problems).unwrap();
        root.take("a");
        root.require("node", &mut problems);
        for item in root.take("listeners").unwrap().items(&mut problems).unwrap() {
            let mut listener = item.mapping(&mut problems).unwrap();
            listener.take("tls").unwrap().bool(&mut problems);
            listener.take("port");
            listener.finish(&mut problems);
        }
        root.finish(&mut problems);
        let expected = "conf/p.yaml:7: a: stands here twice; the first is in line 1\n\
            conf/p.yaml:1: node is missing\n\
            conf/p.yaml:3: listeners[0].tls: expected true or false, found \"x\"\n\
            conf/p.yaml:5: listeners[1].tls: expected true or false, found \"y\"\n\
            conf/p.yaml:6: listeners[1].prot: unknown key; did you mean port?";
        assert_eq!(problems.to_string(), expected);
    }

    #[test]
    fn nothing_is_an_empty_mapping_and_an_absent_value() {
        for text in ["", "# only a comment\n", "---\n", "~"] {
            let document = parse(text);
            let mut problems = Problems::new();
            let mapping = document.root().mapping(&mut problems).unwrap();
            assert_eq!(mapping.entries().count(), 0, "{text:?}");
        }
        assert_eq!(check("k:", |n, p| n.str(p).map(str::to_owned)), Err(String::new()));
        assert_eq!(check("k: ''", |n, p| n.str(p).map(str::to_owned)), Ok(String::new()));
    }

    #[test]
    fn anchors_and_merges_are_followed() {
        let document = parse("x: &x {a: 1, b: 2}\nk: {b: 3, <<: *x}\nl: [*x]\n");
        let value = document.root().to_value();
        assert_eq!(
            value["k"],
            serde_yaml::from_str::<serde_yaml::Value>("{b: 3, a: 1}").unwrap()
        );
        let mut problems = Problems::new();
        let root = document.root().mapping(&mut problems).unwrap();
        let (_, list) = root.entries().nth(2).unwrap();
        let item = list.items(&mut problems).unwrap()[0];
        let (_, b) = item.mapping(&mut problems).unwrap().entries().nth(1).unwrap();
        assert_eq!((b.path().as_str(), b.str(&mut problems)), ("l[0].b", Some("2")));
    }

    #[test]
    fn values_for_serde_are_those_of_serde_yaml() {
        let text = "a: 1\nb: -2\nc: 1.5\nd: true\ne: 'true'\nf: ~\ng: x\nh: [1, two]\ni: {j: k}\nl: \"3\"\nm: nan\n";
        let theirs: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        assert_eq!(parse(text).root().to_value(), theirs);
    }

    #[test]
    fn a_file_stands_for_its_content() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.crt"), "PEM").unwrap();
        let document = Document::parse("k: !file a.crt\nl: !file b.crt\n", &folder.path().join("d.yaml")).unwrap();
        let mut problems = Problems::new();
        let mut root = document.root().mapping(&mut problems).unwrap();
        assert_eq!(root.take("k").unwrap().text(&mut problems).as_deref(), Some("PEM"));
        assert_eq!(root.take("l").unwrap().text(&mut problems), None);
        let shown = problems.to_string();
        assert!(
            shown.contains("d.yaml:2: l: cannot read") && shown.contains("b.crt"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_line() {
        let deep = "[".repeat(MAX_DEPTH + 1);
        let nested: String = (0..40)
            .map(|i| format!("a{i}: &a{i} [[[*a{}]]]\n", i - 1))
            .skip(1)
            .collect();
        let laughs: String = (1..12)
            .map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{},", i - 1).repeat(9)))
            .collect();
        for (text, line, what) in [
            ("a: [1\nb: 2\n", None, ""),
            ("a: 'x", None, ""),
            ("a: 1\n---\nb: 1\n", Some(2), "a second document"),
            ("? [a]\n: 1\n", Some(1), "a key must be a plain word"),
            ("<<: 1\n", Some(1), "<< wants a mapping"),
            ("a: *none\n", None, ""),
            (&deep, Some(1), "nested deeper than 32"),
            (&format!("a0: &a0 x\n{nested}"), None, "nested deeper than 32"),
            (&format!("a0: &a0 x\n{laughs}"), None, "aliases counted"),
        ] {
            let problems = Document::parse(text, Path::new("p")).map(|_| text).unwrap_err();
            let problem = problems.iter().next().unwrap();
            assert!(line.is_none() || problem.line == line, "{problem}");
            assert!(problem.message.contains(what), "{problem}");
        }
    }

    #[test]
    fn hints_are_near() {
        let known = ["listeners", "node", "tls", "log"];
        for (name, near) in [
            ("listener", Some("listeners")),
            ("lisetners", Some("listeners")),
            ("Node", Some("node")),
            ("tsl", Some("tls")),
            ("web", None),
            ("directory", None),
        ] {
            assert_eq!(nearest(name, known.into_iter()), near, "{name}");
        }
    }
}
