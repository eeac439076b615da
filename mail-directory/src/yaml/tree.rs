//! From the text of a document to its tree of nodes, each with its line. What a node should hold is not known here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Document, Each, MAX_DEPTH, MAX_NODES, MAX_TEXT, Node, Outline};

/// A node of the tree as stored. `parent` and `step` together give its path.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) line: usize,
    pub(super) parent: usize,
    pub(super) step: Step,
    pub(super) tag: Option<Box<str>>,
    /// How many collections stand inside each other from here on.
    pub(super) height: usize,
    pub(super) content: NodeContent,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Root,
    Key(Box<str>),
    Index(usize),
}

#[derive(Debug, Clone)]
pub(super) enum NodeContent {
    Scalar {
        text: Box<str>,
        plain: bool,
    },
    Sequence(Vec<usize>),
    Mapping {
        entries: Vec<usize>,
        duplicates: Vec<Duplicate>,
    },
}

impl NodeContent {
    pub(super) fn children(&self) -> &[usize] {
        match self {
            Self::Scalar { .. } => &[],
            Self::Sequence(children) | Self::Mapping { entries: children, .. } => children,
        }
    }
}

/// A key that stood in its mapping already: the key, its line, and the line of the first.
#[derive(Debug, Clone)]
pub(super) struct Duplicate {
    pub(super) key: Box<str>,
    pub(super) line: usize,
    pub(super) first: usize,
}

/// Builds the tree from the parser's events. Errors are the line and a message.
#[derive(Default)]
pub(super) struct Builder<'s> {
    nodes: Vec<Raw>,
    /// How many there were in all.
    made: usize,
    passing: Option<Passing<'s>>,
    /// How many nodes there were when the last key one level below the root came.
    begun: usize,
    /// The last node with an anchor.
    anchored: Option<usize>,
    open: Vec<Open>,
    anchors: HashMap<usize, usize>,
    root: Option<usize>,
}

/// The entries of one mapping at the root are shown as they come, and not kept.
pub(super) struct Passing<'s> {
    pub(super) origin: Arc<Path>,
    pub(super) key: &'s str,
    pub(super) each: Each<'s>,
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

/// The finished tree.
pub(super) struct Built {
    pub(super) nodes: Vec<Raw>,
    pub(super) root: usize,
    pub(super) has_anchors: bool,
}

pub(super) type Failed = (usize, String);

impl<'s> Builder<'s> {
    pub(super) fn passing(passing: Passing<'s>) -> Self {
        Builder {
            passing: Some(passing),
            ..Builder::default()
        }
    }

    pub(super) fn build(mut self, text: &str) -> Result<Built, Failed> {
        if text.len() > MAX_TEXT {
            return Err((1, format!("more than {MAX_TEXT} bytes")));
        }
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| (e.marker().line(), e.info().to_owned()))?;
            self.event(event, span)?;
        }
        let root = match self.root {
            Some(root) => root,
            None => self.push(
                1,
                None,
                NodeContent::Mapping {
                    entries: Vec::new(),
                    duplicates: Vec::new(),
                },
            )?,
        };
        Ok(Built {
            nodes: self.nodes,
            root,
            has_anchors: !self.anchors.is_empty(),
        })
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
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
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
        let (begun, depth) = (self.nodes.len(), self.open.len());
        if let Some(state) = self.key_wanted() {
            state.key = Some((Box::from(text), line));
            if anchor > 0 {
                return Err((line, "an anchor on a key is not supported".to_owned()));
            }
            if depth == 2 {
                self.begun = begun;
            }
            return Ok(());
        }
        let plain = style == ScalarStyle::Plain;
        let index = self.push(
            line,
            name_of(tag),
            NodeContent::Scalar {
                text: Box::from(text),
                plain,
            },
        )?;
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
        self.open.push(Open {
            line,
            anchor,
            tag: name_of(tag),
            items: Vec::new(),
            mapping,
        });
        Ok(())
    }

    fn end(&mut self, line: usize) -> Result<(), Failed> {
        let Some(mut open) = self.open.pop() else {
            return Err((line, "an end without a beginning".to_owned()));
        };
        let content = match open.mapping.take() {
            None => NodeContent::Sequence(open.items),
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
        let copy = self.copy(original)?;
        self.place(copy, 0, line)
    }

    /// The innermost mapping, if its next event is a key.
    fn key_wanted(&mut self) -> Option<&mut MappingState> {
        let state = self.open.last_mut()?.mapping.as_mut()?;
        state.key.is_none().then_some(state)
    }

    fn push(&mut self, line: usize, tag: Option<Box<str>>, content: NodeContent) -> Result<usize, Failed> {
        self.made += 1;
        if self.made > MAX_NODES {
            return Err((line, format!("more than {MAX_NODES} values, aliases counted")));
        }
        let height = content
            .children()
            .iter()
            .map(|&child| self.nodes[child].height + 1)
            .max()
            .unwrap_or(0);
        if height > MAX_DEPTH {
            return Err((line, format!("nested deeper than {MAX_DEPTH}, aliases counted")));
        }
        self.nodes.push(Raw {
            line,
            parent: 0,
            step: Step::Root,
            tag,
            height,
            content,
        });
        Ok(self.nodes.len() - 1)
    }

    /// Puts a finished node where the open collection wants it.
    fn place(&mut self, index: usize, anchor: usize, line: usize) -> Result<(), Failed> {
        if anchor > 0 {
            self.anchors.insert(anchor, index);
            self.anchored = Some(index);
        }
        let passes = self.passes();
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
            state.duplicates.push(Duplicate {
                key,
                line: key_line,
                first,
            });
        } else {
            state.lines.insert(key.clone(), key_line);
            self.nodes[index].step = Step::Key(key);
            self.nodes[index].line = key_line;
            match passes {
                true => self.pass(index),
                false => open.items.push(index),
            }
        }
        Ok(())
    }

    /// Whether the value that came last is shown and not kept. Others may refer to what has an anchor.
    fn passes(&self) -> bool {
        let (Some(passing), [root, of]) = (&self.passing, self.open.as_slice()) else {
            return false;
        };
        let key = root.mapping.as_ref().and_then(|state| state.key.as_ref());
        key.is_some_and(|(key, _)| **key == *passing.key)
            && of.anchor == 0
            && self.anchored.is_none_or(|at| at < self.begun)
    }

    /// Shows a value with the path that it has, and forgets it.
    fn pass(&mut self, index: usize) {
        let Some(passing) = self.passing.take() else {
            return;
        };
        let root = self.nodes.len();
        let above = |parent, step| Raw {
            line: 1,
            parent,
            step,
            tag: None,
            height: 0,
            content: NodeContent::Sequence(Vec::new()),
        };
        self.nodes.push(above(root, Step::Root));
        self.nodes.push(above(root, Step::Key(Box::from(passing.key))));
        self.nodes[index].parent = root + 1;
        let document = Document {
            origin: passing.origin.clone(),
            nodes: std::mem::take(&mut self.nodes),
            root,
            // It is no text of its own.
            has_anchors: false,
            last_line_ends: true,
            outline: Outline::default(),
        };
        let node = Node {
            document: &document,
            index,
        };
        (passing.each)(node.key(), node);
        self.nodes = document.nodes;
        self.nodes.truncate(self.begun);
        self.passing = Some(passing);
    }

    /// The end of a mapping: `<<` adds what is not there yet; earlier mappings win over later ones.
    fn merge(&mut self, mut entries: Vec<usize>, mut state: MappingState) -> Result<NodeContent, Failed> {
        for (source, line) in std::mem::take(&mut state.merges) {
            for entry in self.merged_entries(source, line)? {
                let Step::Key(key) = self.nodes[entry].step.clone() else {
                    continue;
                };
                if state.lines.contains_key(&key) {
                    continue;
                }
                let copy = self.copy(entry)?;
                self.nodes[copy].step = Step::Key(key.clone());
                state.lines.insert(key, line);
                entries.push(copy);
            }
        }
        Ok(NodeContent::Mapping {
            entries,
            duplicates: state.duplicates,
        })
    }

    fn merged_entries(&self, source: usize, line: usize) -> Result<Vec<usize>, Failed> {
        match &self.nodes[source].content {
            NodeContent::Mapping { entries, .. } => Ok(entries.clone()),
            NodeContent::Sequence(items) => {
                let each: Result<Vec<_>, _> = items.iter().map(|&i| self.merged_entries(i, line)).collect();
                Ok(each?.concat())
            }
            NodeContent::Scalar { .. } => Err((line, "<< wants a mapping or a list of mappings".to_owned())),
        }
    }

    /// A copy of a subtree, no deeper than [`MAX_DEPTH`], as no node is. It keeps the lines of the original, where
    /// a bad value is mended.
    fn copy(&mut self, original: usize) -> Result<usize, Failed> {
        let tag = self.nodes[original].tag.clone();
        let mut content = self.nodes[original].content.clone();
        if let NodeContent::Sequence(children) | NodeContent::Mapping { entries: children, .. } = &mut content {
            for child in children {
                let step = self.nodes[*child].step.clone();
                *child = self.copy(*child)?;
                self.nodes[*child].step = step;
            }
        }
        let index = self.push(self.nodes[original].line, tag, content)?;
        self.adopt(index);
        Ok(index)
    }

    /// Sets `index` as the parent of its children.
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
