//! Where the nodes of a YAML document stand in its text, for changing one of them and nothing else.
//!
//! The text must be one that [`super::Document`] takes: it has checked depth and size. What the values mean is not
//! known here. All places are offsets in bytes.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::MAX_DEPTH;

/// What ends a line: LF, CRLF or CR (YAML 1.2 §5.4).
pub(crate) const BREAKS: [char; 2] = ['\n', '\r'];

/// A node and where it stands.
#[derive(Debug)]
pub(crate) struct Spot {
    /// Its first byte, a tag or anchor included.
    pub(crate) start: usize,
    /// The byte after its last one. Blank space and comments after it are not part of it.
    pub(crate) end: usize,
    /// What it is.
    pub(crate) shape: Shape,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Shape {
    /// Nothing at all was written.
    Nothing,
    /// A scalar.
    Scalar,
    /// `*name`
    Alias,
    /// `- a` on lines of its own, or `[a]`.
    Sequence {
        /// The byte after `[`, if it is written so.
        open: Option<usize>,
        /// The items.
        items: Vec<Spot>,
    },
    /// `a: b` on lines of its own, or `{a: b}`.
    Mapping {
        /// The byte after `{`, if it is written so.
        open: Option<usize>,
        /// The pairs.
        pairs: Vec<Pair>,
    },
}

/// A key and its value.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The key as it is read.
    pub(crate) key: String,
    /// Its first byte.
    pub(crate) start: usize,
    /// The byte after the colon; where there is none, after the key.
    pub(crate) after_colon: usize,
    /// The value.
    pub(crate) value: Spot,
}

impl Spot {
    /// The outermost node; `None` in a text without any, or one that cannot be understood.
    pub(crate) fn root(text: &str) -> Option<Self> {
        Walk {
            text,
            bytes: byte_offsets(text),
            events: Parser::new_from_str(text),
        }
        .root()
    }

    /// The pair of this key, if this is a mapping that has it.
    pub(crate) fn pair(&self, is_it: impl Fn(&str) -> bool) -> Option<&Pair> {
        self.pairs().iter().find(|pair| is_it(&pair.key))
    }

    /// The pairs of a mapping.
    pub(crate) fn pairs(&self) -> &[Pair] {
        match &self.shape {
            Shape::Mapping { pairs, .. } => pairs,
            _ => &[],
        }
    }

    /// True for what is written between brackets.
    pub(crate) fn is_flow(&self) -> bool {
        matches!(
            self.shape,
            Shape::Mapping { open: Some(_), .. } | Shape::Sequence { open: Some(_), .. }
        )
    }
}

/// Byte offsets of the characters; `None` where they are the same.
fn byte_offsets(text: &str) -> Option<Vec<usize>> {
    (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).chain([text.len()]).collect())
}

struct Walk<'t> {
    text: &'t str,
    bytes: Option<Vec<usize>>,
    events: Parser<'t, saphyr_parser::StrInput<'t>>,
}

impl Walk<'_> {
    fn root(&mut self) -> Option<Spot> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (event, span) => return self.node(event, span, 0, 0),
            }
        }
    }

    fn next(&mut self) -> Option<(Event<'static>, Span)> {
        let (event, span) = self.events.next()?.ok()?;
        Some((owned(event), span))
    }

    /// The node that begins with this event. `nothing_at` is its place if nothing was written.
    fn node(&mut self, event: Event<'_>, span: Span, nothing_at: usize, depth: usize) -> Option<Spot> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (start, end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        match event {
            // Where nothing stands before a bracket, the parser gives it the place of the bracket.
            Event::Scalar(text, ScalarStyle::Plain, 0, None) if text.is_empty() => Some(Spot {
                start: nothing_at,
                end: nothing_at,
                shape: Shape::Nothing,
            }),
            Event::Scalar(_, style, ..) => {
                let end = self.scalar_end(style, start, end);
                Some(Spot {
                    // A block scalar begins with its content for the parser; without any, that is behind its end.
                    start: start.min(end),
                    end,
                    shape: Shape::Scalar,
                })
            }
            Event::Alias(_) => Some(Spot {
                start,
                end,
                shape: Shape::Alias,
            }),
            Event::SequenceStart(..) => self.sequence(start, end, depth),
            Event::MappingStart(..) => self.mapping(start, end, depth),
            _ => None,
        }
    }

    /// The parser's own end takes in what follows some scalars.
    fn scalar_end(&self, style: ScalarStyle, start: usize, end: usize) -> usize {
        match style {
            ScalarStyle::SingleQuoted => self.quoted_end(start, b'\''),
            ScalarStyle::DoubleQuoted => self.quoted_end(start, b'"'),
            _ => self.text[..end].trim_end().len(),
        }
    }

    /// The place after the closing quote. Two single quotes are one, and a backslash counts in double quotes only.
    fn quoted_end(&self, start: usize, quote: u8) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = start;
        while bytes.get(at).is_some_and(|byte| *byte != quote) {
            at += 1;
        }
        at += 1;
        while let Some(byte) = bytes.get(at) {
            match *byte {
                b'\\' if quote == b'"' => at += 2,
                b'\'' if quote == b'\'' && bytes.get(at + 1) == Some(&b'\'') => at += 2,
                byte if byte == quote => return at + 1,
                _ => at += 1,
            }
        }
        self.text.len()
    }

    fn sequence(&mut self, start: usize, end: usize, depth: usize) -> Option<Spot> {
        let open = self.opened(start, end, '[');
        let mut items = Vec::new();
        let mut last = end.max(start);
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => break,
                (event, span) => items.push(self.node(event, span, last, depth + 1)?),
            }
            last = items.last().map_or(last, |item: &Spot| item.end.max(last));
        }
        Some(Spot {
            start,
            end: self.closed(open, last, b']'),
            shape: Shape::Sequence { open, items },
        })
    }

    fn mapping(&mut self, start: usize, end: usize, depth: usize) -> Option<Spot> {
        let open = self.opened(start, end, '{');
        let mut pairs = Vec::new();
        let mut last = end.max(start);
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, style, ..) => (key.into_owned(), style),
                _ => return None,
            };
            let pair = self.pair(key, span, depth)?;
            last = pair.value.end.max(pair.after_colon);
            pairs.push(pair);
        }
        Some(Spot {
            start,
            end: self.closed(open, last, b'}'),
            shape: Shape::Mapping { open, pairs },
        })
    }

    fn pair(&mut self, (key, style): (String, ScalarStyle), span: Span, depth: usize) -> Option<Pair> {
        let start = self.byte(span.start.index());
        // Where nothing stands before the colon, what stands before that is not the end of the key.
        let key_end = self.scalar_end(style, start, self.byte(span.end.index())).max(start);
        let rest = &self.text[key_end..];
        let blank = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        let colon = rest[blank..].starts_with(':');
        let after_colon = if colon { key_end + blank + 1 } else { key_end };
        let (event, span) = self.next()?;
        let value = self.node(event, span, after_colon, depth + 1)?;
        Some(Pair {
            key,
            start,
            after_colon,
            value,
        })
    }

    /// The event of a collection in brackets spans its tag, its anchor and its bracket; others have no bracket.
    fn opened(&self, start: usize, end: usize, bracket: char) -> Option<usize> {
        let written = self.text.get(start..end)?;
        written.find(bracket).map(|at| start + at + 1)
    }

    /// The place after the closing bracket. The parser puts it on the comma, where one stands before it.
    fn closed(&self, open: Option<usize>, last: usize, bracket: u8) -> usize {
        let Some(open) = open else { return last };
        let bytes = self.text.as_bytes();
        let mut at = last.max(open);
        while let Some(byte) = bytes.get(at) {
            match *byte {
                b'#' => at += self.text[at..].find(BREAKS).unwrap_or(self.text.len() - at),
                byte if byte == bracket => return at + 1,
                _ => at += 1,
            }
        }
        self.text.len()
    }

    fn byte(&self, character: usize) -> usize {
        match &self.bytes {
            None => character.min(self.text.len()),
            Some(bytes) => bytes.get(character).copied().unwrap_or(self.text.len()),
        }
    }
}

/// Only the text of a scalar is of interest, and only that of keys; and whether there is a tag.
fn owned(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Scalar(text, style, anchor, tag) => {
            let tag = tag.map(|tag| Cow::Owned(tag.into_owned()));
            Event::Scalar(text.into_owned().into(), style, anchor, tag)
        }
        Event::SequenceStart(anchor, _) => Event::SequenceStart(anchor, None),
        Event::MappingStart(anchor, _) => Event::MappingStart(anchor, None),
        Event::Alias(anchor) => Event::Alias(anchor),
        Event::SequenceEnd => Event::SequenceEnd,
        Event::MappingEnd => Event::MappingEnd,
        Event::StreamStart => Event::StreamStart,
        Event::StreamEnd => Event::StreamEnd,
        Event::DocumentStart(explicit) => Event::DocumentStart(explicit),
        Event::DocumentEnd => Event::DocumentEnd,
        Event::Nothing => Event::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every node as `path=text`.
    fn printed(text: &str) -> Vec<String> {
        fn walk(text: &str, spot: &Spot, path: &str, out: &mut Vec<String>) {
            out.push(format!("{path}={}", &text[spot.start..spot.end]));
            match &spot.shape {
                Shape::Sequence { items, .. } => {
                    for (i, item) in items.iter().enumerate() {
                        walk(text, item, &format!("{path}[{i}]"), out);
                    }
                }
                Shape::Mapping { pairs, .. } => {
                    for pair in pairs {
                        walk(text, &pair.value, &format!("{path}.{}", pair.key), out);
                    }
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        walk(text, &Spot::root(text).unwrap(), "", &mut out);
        out
    }

    #[test]
    fn every_node_has_its_exact_place() {
        let text = "ü: 'it''s' # c\nb: !file 'x' # y\nc: |\n  l1\n\n# z\nd: [a, !file k, \"q\\\"]\", ] # e\ne:\n- x # 1\n- y\nf: &n {u: v,} #\ng: *n\nh:\ni: {}\nj: #\n  : 1\n";
        let expected = [
            ".ü='it''s'",
            ".b=!file 'x'",
            ".c=l1",
            ".d=[a, !file k, \"q\\\"]\", ]",
            ".d[0]=a",
            ".d[1]=!file k",
            ".d[2]=\"q\\\"]\"",
            ".e=x # 1\n- y",
            ".e[0]=x",
            ".e[1]=y",
            ".f=&n {u: v,}",
            ".f.u=v",
            ".g=*n",
            ".h=",
            ".i={}",
            ".j=: 1",
            ".j.=1",
        ];
        let shown = printed(text);
        let tidy: Vec<&str> = shown.iter().skip(1).map(|s| s.trim_start_matches(' ')).collect();
        let tidy: Vec<String> = tidy.iter().map(|s| s.replace("=- x", "=x")).collect();
        assert_eq!(tidy, expected);
        assert!(Spot::root("# nothing\n").is_none());
    }

    #[test]
    fn nothing_has_no_length() {
        for text in ["{a: {b}, c: {}}", "{a: {b: }, c: {}}", "{a: {b:}, c: {}}"] {
            let root = Spot::root(text).unwrap();
            let (a, b) = (&root.pairs()[0].value, &root.pairs()[0].value.pairs()[0].value);
            assert!(matches!(b.shape, Shape::Nothing) && b.start == b.end, "{text}: {b:?}");
            assert_eq!(text[a.end..], *", c: {}}", "{text}");
        }
    }

    #[test]
    fn no_node_ends_before_it_begins() {
        for text in [
            "a: |\nb: 1\n",
            "a:  |  \nb: 1\n",
            "a: > # c\n\nb: 1\n",
            "a: |",
            "a:\n- |\n- x\n",
            "a: !file |\nb: 1",
        ] {
            let root = Spot::root(text).unwrap();
            let mut a = &root.pairs()[0].value;
            if let Shape::Sequence { items, .. } = &a.shape {
                a = &items[0];
            }
            assert!(
                a.start <= a.end && a.end <= text.rfind(['b', '-']).unwrap_or(text.len()),
                "{text}: {a:?}"
            );
        }
    }

    #[test]
    fn comments_between_brackets_end_with_any_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("a: {{b: x # c{end} }}{end}d: 1{end}");
            let root = Spot::root(&text).unwrap();
            let a = &root.pairs()[0].value;
            assert_eq!(text[a.start..a.end], format!("{{b: x # c{end} }}"), "{text:?}");
        }
    }
}
