//! The YAML reader and the directory on top of it: limits hold, every node can be asked for anything, each problem
//! names a line of the text, and a good directory finds its accounts.

use std::path::{Component, Path};

use mail_directory::file::YamlDirectory;
use mail_directory::yaml::{Document, MAX_DEPTH, MAX_NODES, Node, Problems};

pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let origin = Path::new("d.yaml");
    // A problem may stand at the end, behind the last line.
    let lines = lines(text).len() + 1;
    let document = match Document::parse(text, origin) {
        Ok(document) => document,
        Err(problems) => return check_problems(&problems, lines),
    };
    let mut seen = Seen { nodes: 0, lines };
    seen.node(document.root(), 0);
    // Files are read from where the text says: only from beside this one.
    if is_near(document.root()) {
        check_directory(text, origin, lines);
    }
}

/// The lines with their ends (YAML 1.2 §5.4).
pub(crate) fn lines(text: &str) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['\r', '\n']) {
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + 1 };
        lines.push(&rest[..end]);
        rest = &rest[end..];
    }
    lines.extend(Some(rest).filter(|rest| !rest.is_empty()));
    lines
}

/// Whether every `!file` names a file in the same folder or below it.
pub(crate) fn is_near(node: Node<'_>) -> bool {
    let problems = &mut Problems::new();
    if let Some(Some(path)) = node.file(problems) {
        return path.components().all(|part| matches!(part, Component::Normal(_)));
    }
    if node.is_mapping() {
        let mapping = node.mapping(problems);
        return mapping.is_none_or(|mapping| mapping.entries().all(|(_, value)| is_near(value)));
    }
    node.items(problems).is_none_or(|items| items.into_iter().all(is_near))
}

struct Seen {
    nodes: usize,
    lines: usize,
}

impl Seen {
    fn node(&mut self, node: Node<'_>, depth: usize) {
        self.nodes += 1;
        assert!(self.nodes <= MAX_NODES && depth <= MAX_DEPTH);
        assert!(
            (1..=self.lines).contains(&node.line()),
            "line {} of {}",
            node.line(),
            self.lines
        );
        let mut problems = Problems::new();
        self.read(node, &mut problems);
        check_problems(&problems, self.lines);
        let mut problems = Problems::new();
        if node.is_mapping() {
            let mapping = node.mapping(&mut problems);
            for (_, value) in mapping.iter().flat_map(|mapping| mapping.entries()) {
                self.node(value, depth + 1);
            }
        } else {
            let items = node.items(&mut problems).unwrap_or_default();
            items.into_iter().for_each(|item| self.node(item, depth + 1));
        }
        check_problems(&problems, self.lines);
    }

    /// Asks for everything but the content of files.
    fn read(&self, node: Node<'_>, problems: &mut Problems) {
        let text = node.str(problems);
        assert_eq!(text.is_some(), node.path_buf(problems).is_some() || text == Some(""));
        let number = node.u64(problems);
        assert!(node.port(problems).is_none_or(|port| number == Some(u64::from(port))));
        assert!(node.u16(problems).is_none_or(|short| number == Some(u64::from(short))));
        node.bool(problems);
        node.duration(problems);
        node.socket_addr(problems);
        node.networks(problems);
        node.strs(problems);
        node.choice(&[("a", 1), ("b", 2)], problems);
        let _ = node.path();
    }
}

fn check_problems(problems: &Problems, lines: usize) {
    for problem in problems {
        assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem}");
    }
    assert_eq!(problems.to_string().is_empty(), problems.is_empty());
}

fn check_directory(text: &str, origin: &Path, lines: usize) {
    match YamlDirectory::parse(text, origin) {
        Ok((directory, warnings)) => {
            assert!(!warnings.has_errors());
            check_problems(&warnings, lines);
            assert_eq!(directory.accounts().len(), directory.account_count());
        }
        Err(problems) => {
            assert!(problems.has_errors());
            check_problems(&problems, lines);
        }
    }
}
