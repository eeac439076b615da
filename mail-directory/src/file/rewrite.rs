//! Changes the text of a YAML directory in one place and leaves every other byte as it is.
//!
//! It knows how YAML is laid out, not what is meant: that the new text says what was wanted, and nothing else, is
//! checked by its caller, which reads it again. What is written in a form that cannot be changed safely is refused.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::names::fold;
use crate::yaml::layout::{BREAKS, Pair, Shape, Spot};

/// One more level of lines.
const STEP: &str = "  ";

/// Where an entry stands: its section, and its name in it; the global config has no name.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryPlace<'a> {
    /// Key at the top of the document.
    pub(super) section: &'a str,
    /// Key in the section.
    pub(super) name: Option<&'a str>,
}

/// An attribute of an entry with its values.
pub(super) type NamedValues<'a> = (&'a str, &'a [String]);

/// Why a change was refused.
pub(super) type Refused = String;

/// Something new.
enum New<'a> {
    Values(&'a [String]),
    Mapping(Vec<(&'a str, Self)>),
}

/// Replaces the values `before` by `after`; an empty `before` means a new line, an empty `after` no line.
pub(super) fn set(
    text: &str,
    place: EntryPlace<'_>,
    attribute: NamedValues<'_>,
    before: &[String],
) -> Result<String, Refused> {
    let (name, after) = attribute;
    let root = Spot::root(text);
    let Some(owner) = root.as_ref().and_then(|root| owner(root, place)) else {
        return insert_section_or_entry(text, root.as_ref(), place, vec![(name, New::Values(after))]);
    };
    match owner.pair.value.pair(|key| key.eq_ignore_ascii_case(name)) {
        Some(_) if after.is_empty() => remove(text, &owner.pair.value, |key| key.eq_ignore_ascii_case(name)),
        Some(_) => values(text, place, name, before, after),
        None if after.is_empty() => Ok(text.to_owned()),
        None => insert(text, Some(&owner), &owner.pair.value, name, &New::Values(after)),
    }
}

/// Adds an entry.
pub(super) fn create(text: &str, place: EntryPlace<'_>, attributes: &[NamedValues<'_>]) -> Result<String, Refused> {
    let attributes = attributes.iter().map(|(name, values)| (*name, New::Values(values)));
    insert_section_or_entry(text, Spot::root(text).as_ref(), place, attributes.collect())
}

/// Takes an entry away.
pub(super) fn delete(text: &str, place: EntryPlace<'_>) -> Result<String, Refused> {
    let root = Spot::root(text).ok_or("there is nothing in it")?;
    let (section, name) = (root.pair(|key| key == place.section), place.name.unwrap_or_default());
    let section = section.ok_or_else(|| format!("there is no {}", place.section))?;
    remove(text, &section.value, |key| fold(key) == fold(name))
}

/// A pair whose value is a mapping, and whether it stands between brackets.
struct Owner<'s> {
    pair: &'s Pair,
    in_flow: bool,
}

fn owner<'s>(root: &'s Spot, place: EntryPlace<'_>) -> Option<Owner<'s>> {
    let section = Owner {
        pair: root.pair(|key| key == place.section)?,
        in_flow: root.is_flow(),
    };
    let Some(name) = place.name else { return Some(section) };
    Some(Owner {
        pair: section.pair.value.pair(|key| fold(key) == fold(name))?,
        in_flow: section.in_flow || section.pair.value.is_flow(),
    })
}

fn insert_section_or_entry(
    text: &str,
    root: Option<&Spot>,
    place: EntryPlace<'_>,
    attributes: Vec<(&str, New<'_>)>,
) -> Result<String, Refused> {
    let entry = New::Mapping(attributes);
    let Some(root) = root else {
        return Ok(insert_lines(
            text,
            text.len(),
            &pair_lines("", place.section, &in_section(place, entry)),
        ));
    };
    match (owner(root, EntryPlace { name: None, ..place }), place.name) {
        (Some(section), Some(name)) => insert(text, Some(&section), &section.pair.value, name, &entry),
        _ => insert(text, None, root, place.section, &in_section(place, entry)),
    }
}

fn in_section<'a>(place: EntryPlace<'a>, entry: New<'a>) -> New<'a> {
    match place.name {
        Some(name) => New::Mapping(vec![(name, entry)]),
        None => entry,
    }
}

/// Adds a pair at the end of a mapping.
fn insert(text: &str, owner: Option<&Owner<'_>>, mapping: &Spot, key: &str, new: &New<'_>) -> Result<String, Refused> {
    let in_flow = owner.is_some_and(|owner| owner.in_flow);
    match (&mapping.shape, owner) {
        (Shape::Mapping { open: None, pairs }, _) if !pairs.is_empty() => {
            let indent = indent(text, pairs[0].start)?;
            let last = pairs.iter().map(pair_end).max().unwrap_or_default();
            Ok(insert_lines(text, line_end(text, last), &pair_lines(indent, key, new)))
        }
        (Shape::Mapping { open: Some(_), pairs }, _) if !pairs.is_empty() => {
            let last = pairs.iter().map(pair_end).max().unwrap_or_default();
            Ok(splice(text, last, last, &format!(", {}", flow_pair(key, new))))
        }
        (Shape::Mapping { open: Some(open), .. }, _) if in_flow || owner.is_none() => {
            Ok(splice(text, *open, *open, &flow_pair(key, new)))
        }
        (Shape::Nothing, Some(owner)) if in_flow => {
            let at = owner.pair.after_colon;
            Ok(splice(text, at, at, &format!(" {{{}}}", flow_pair(key, new))))
        }
        // `{}`, `~` or nothing at all becomes lines.
        (Shape::Mapping { .. } | Shape::Nothing | Shape::Scalar, Some(owner))
            if !in_flow && is_empty(text, mapping) =>
        {
            let pair = owner.pair;
            let indent = format!("{}{STEP}", indent(text, pair.start)?);
            let end = pair_end(pair);
            let with_lines = insert_lines(text, line_end(text, end), &pair_lines(&indent, key, new));
            Ok(splice(&with_lines, pair.after_colon, end, ""))
        }
        _ => Err(format!("{key} cannot be added to what is an alias or no mapping")),
    }
}

/// An empty mapping, nothing, or what stands for nothing.
fn is_empty(text: &str, value: &Spot) -> bool {
    match value.shape {
        Shape::Scalar => ["~", "null", "Null", "NULL"].contains(&&text[value.start..value.end]),
        _ => true,
    }
}

/// Takes a pair out of a mapping.
fn remove(text: &str, mapping: &Spot, is_it: impl Fn(&str) -> bool) -> Result<String, Refused> {
    let Shape::Mapping { open, pairs } = &mapping.shape else {
        return Err("it stands in what is an alias or no mapping".to_owned());
    };
    let at = pairs.iter().position(|pair| is_it(&pair.key));
    let at = at.ok_or("it stands in an alias or a merge")?;
    let places: Vec<(usize, usize)> = pairs.iter().map(|pair| (pair.start, pair_end(pair))).collect();
    match open {
        Some(_) => Ok(remove_in_flow(text, &places, at)),
        None => remove_lines(text, places[at]),
    }
}

/// Changes the values of an attribute that is there. Items of a list that stay are not touched.
fn values(
    text: &str,
    place: EntryPlace<'_>,
    attribute: &str,
    before: &[String],
    after: &[String],
) -> Result<String, Refused> {
    let root = Spot::root(text).ok_or("there is nothing in it")?;
    let owner = owner(&root, place).ok_or("the entry is gone")?;
    let in_flow = owner.in_flow || owner.pair.value.is_flow();
    let pair = owner.pair.value.pair(|key| key.eq_ignore_ascii_case(attribute));
    let pair = pair.ok_or("the attribute is gone")?;
    let Shape::Sequence { open, items } = &pair.value.shape else {
        return replace(text, pair, in_flow, &raws(text, &pair.value, before), after);
    };
    let kept: HashSet<&String> = after.iter().collect();
    let stays: Vec<bool> = before.iter().map(|value| kept.contains(value)).collect();
    let kept: Vec<&String> = before.iter().filter(|value| kept.contains(value)).collect();
    let is_appended = after.iter().zip(&kept).all(|(a, b)| a == *b) && kept.len() <= after.len();
    let last = stays.iter().rposition(|stays| *stays);
    let Some(last) = last.filter(|_| is_appended && items.len() == before.len()) else {
        return replace(text, pair, in_flow, &raws(text, &pair.value, before), after);
    };
    let new = &after[kept.len()..];
    let edits = match open {
        Some(_) => edits_in_flow(items, &stays, last, new),
        None => edits_of_lines(text, items, &stays, last, new)?,
    };
    Ok(edited(text, &edits))
}

/// What stands between two places becomes something else.
type TextEdit = (usize, usize, String);

/// Items between brackets go with what leads to the next one; new ones follow the last that stays.
fn edits_in_flow(items: &[Spot], stays: &[bool], last: usize, new: &[String]) -> Vec<TextEdit> {
    let gone = (0..last).filter(|at| !stays[*at]);
    let cuts = gone.map(|at| (items[at].start, items[at + 1].start, String::new()));
    let more = new.iter().map(|value| format!(", {}", scalar(value))).collect();
    let end = items.last().map_or(items[last].end, |item| item.end);
    cuts.chain([(items[last].end, end, more)]).collect()
}

/// The same of items with a line for each.
fn edits_of_lines(
    text: &str,
    items: &[Spot],
    stays: &[bool],
    last: usize,
    new: &[String],
) -> Result<Vec<TextEdit>, Refused> {
    let mut edits = Vec::new();
    for (at, item) in items.iter().enumerate() {
        if !stays[at] {
            let (start, end) = whole_lines(text, (dash(text, item.start)?, item.end))?;
            edits.push((start, end, String::new()));
        } else if at == last && !new.is_empty() {
            let indent = indent(text, dash(text, item.start)?)?;
            let end = line_end(text, item.end);
            let line = |value: &String| format!("{indent}- {}\n", scalar(value));
            let more: String = new.iter().map(line).collect();
            edits.push((end, end, format!("{}{more}", missing_break(text, end))));
        }
    }
    Ok(edits)
}

/// The text after edits that are in order.
fn edited(text: &str, edits: &[TextEdit]) -> String {
    let (mut all, mut at) = (String::with_capacity(text.len()), 0);
    for (start, end, new) in edits {
        all.push_str(&text[at..*start]);
        all.push_str(new);
        at = *end;
    }
    all + &text[at..]
}

/// What was written for each value with a tag (`!file`), so that it can be written again.
fn raws<'t>(text: &'t str, value: &Spot, before: &'t [String]) -> Vec<(&'t str, &'t str)> {
    let items = match &value.shape {
        Shape::Sequence { items, .. } => items.as_slice(),
        _ => std::slice::from_ref(value),
    };
    if items.len() != before.len() {
        return Vec::new();
    }
    let written = items.iter().map(|item| &text[item.start..item.end]);
    let pairs = before.iter().map(String::as_str).zip(written);
    pairs
        .filter(|(_, raw)| raw.starts_with('!') && !raw.contains(BREAKS))
        .collect()
}

/// Replaces the whole value of a pair.
fn replace(text: &str, pair: &Pair, in_flow: bool, raws: &[(&str, &str)], after: &[String]) -> Result<String, Refused> {
    let end = pair_end(pair);
    let written = |value: &String| match raws.iter().find(|(old, _)| old == value) {
        Some((_, raw)) => (*raw).to_owned(),
        None => scalar(value),
    };
    let (head, body) = match after {
        [one] if !in_flow && raws.iter().all(|(old, _)| old != one) => {
            let indent = format!("{}{STEP}", indent(text, pair.start)?);
            block_scalar(one, &indent)
        }
        [one] => (written(one), String::new()),
        many => {
            let all: Vec<String> = many.iter().map(written).collect();
            (format!("[{}]", all.join(", ")), String::new())
        }
    };
    let with_body = insert_lines(text, line_end(text, end), &body);
    Ok(splice(&with_body, pair.after_colon, end, &format!(" {head}")))
}

fn pair_end(pair: &Pair) -> usize {
    pair.value.end.max(pair.after_colon)
}

/// Removes lines that hold nothing else.
fn remove_lines(text: &str, part: (usize, usize)) -> Result<String, Refused> {
    let (first, last) = whole_lines(text, part)?;
    Ok(splice(text, first, last, ""))
}

/// Where the lines begin and end that hold this and nothing else.
fn whole_lines(text: &str, (start, end): (usize, usize)) -> Result<(usize, usize), Refused> {
    indent(text, start)?;
    let (first, last) = (line_start(text, start), line_end(text, end));
    let rest = text[end..last].trim();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("something else stands in its line".to_owned());
    }
    Ok((first, last))
}

/// Removes one of the items between brackets, and one comma.
fn remove_in_flow(text: &str, places: &[(usize, usize)], at: usize) -> String {
    let (start, end) = places[at];
    if let Some((next, _)) = places.get(at + 1) {
        return splice(text, start, *next, "");
    }
    let blank = text[end..].len() - text[end..].trim_start().len();
    let comma = text[end + blank..].starts_with(',');
    match at.checked_sub(1) {
        Some(before) => splice(text, places[before].1, end, ""),
        None if comma => splice(text, start, end + blank + 1, ""),
        None => splice(text, start, end, ""),
    }
}

/// The dash of an item that stands on a line of its own.
fn dash(text: &str, item: usize) -> Result<usize, Refused> {
    let line = line_start(text, item);
    let before = text[line..item].trim_end();
    match before.ends_with('-') && before.trim_start().len() == 1 {
        true => Ok(line + before.len() - 1),
        false => Err("a list is written in an unusual form".to_owned()),
    }
}

/// What stands before `at` in its line, which must be blank.
fn indent(text: &str, at: usize) -> Result<&str, Refused> {
    let before = &text[line_start(text, at)..at];
    match before.trim().is_empty() {
        true => Ok(before),
        false => Err("something else stands in its line".to_owned()),
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind(BREAKS).map_or(0, |end| end + 1)
}

/// The place after the end of the line.
fn line_end(text: &str, at: usize) -> usize {
    let Some(end) = text[at..].find(BREAKS) else {
        return text.len();
    };
    let length = if text[at + end..].starts_with("\r\n") { 2 } else { 1 };
    at + end + length
}

fn splice(text: &str, start: usize, end: usize, new: &str) -> String {
    [&text[..start], new, &text[end..]].concat()
}

/// Puts lines after one that may lack its end.
fn insert_lines(text: &str, at: usize, lines: &str) -> String {
    let end = if lines.is_empty() { "" } else { missing_break(text, at) };
    [&text[..at], end, lines, &text[at..]].concat()
}

/// What the line that ends there lacks.
fn missing_break(text: &str, at: usize) -> &'static str {
    match at > 0 && !text[..at].ends_with(BREAKS) {
        true => "\n",
        false => "",
    }
}

fn pair_lines(indent: &str, key: &str, new: &New<'_>) -> String {
    let key = scalar(key);
    match new {
        New::Values([one]) => {
            let (head, body) = block_scalar(one, &format!("{indent}{STEP}"));
            format!("{indent}{key}: {head}\n{body}")
        }
        New::Mapping(pairs) if !pairs.is_empty() => {
            let inner = format!("{indent}{STEP}");
            let lines: String = pairs.iter().map(|(key, new)| pair_lines(&inner, key, new)).collect();
            format!("{indent}{key}:\n{lines}")
        }
        other => format!("{indent}{key}: {}\n", flow(other)),
    }
}

fn flow_pair(key: &str, new: &New<'_>) -> String {
    format!("{}: {}", scalar(key), flow(new))
}

fn flow(new: &New<'_>) -> String {
    match new {
        New::Values([one]) => scalar(one),
        New::Values(many) => format!("[{}]", many.iter().map(|v| scalar(v)).collect::<Vec<_>>().join(", ")),
        New::Mapping(pairs) => {
            let pairs: Vec<String> = pairs.iter().map(|(key, new)| flow_pair(key, new)).collect();
            format!("{{{}}}", pairs.join(", "))
        }
    }
}

/// What follows the colon, and the lines below. A text of several lines is shown as it is (YAML 1.2 §8.1.2).
fn block_scalar(value: &str, indent: &str) -> (String, String) {
    let content = value.strip_suffix('\n').unwrap_or(value);
    let plain = |c: char| c == '\n' || c == ' ' || c.is_alphanumeric() || c.is_ascii_punctuation();
    let fits = content.contains('\n') && !content.ends_with('\n') && !content.starts_with(['\n', ' ']);
    if !fits || !content.chars().all(plain) {
        return (scalar(value), String::new());
    }
    let head = if content.len() < value.len() { "|" } else { "|-" };
    let mut body = String::new();
    for line in content.split('\n') {
        let indent = if line.is_empty() { "" } else { indent };
        let _ = writeln!(body, "{indent}{line}");
    }
    (head.to_owned(), body)
}

/// A value in one line that reads as this text, between brackets too.
fn scalar(value: &str) -> String {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '/';
    let other = |c: char| c.is_ascii_alphanumeric() || "._@/+-=".contains(c);
    let is_plain = value.starts_with(first) && value.chars().all(other) && !value.eq_ignore_ascii_case("null");
    if is_plain {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            ' '..='~' => quoted.push(c),
            c if c.is_alphanumeric() => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: EntryPlace<'static> = EntryPlace {
        section: "config",
        name: None,
    };

    fn domain(name: &str) -> EntryPlace<'_> {
        EntryPlace {
            section: "domains",
            name: Some(name),
        }
    }

    fn owned(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    /// `set` on attribute `a` of domain `d`.
    #[track_caller]
    fn check(text: &str, before: &[&str], after: &[&str], expected: &str) {
        let after = owned(after);
        let new = set(text, domain("D"), ("a", &after), &owned(before)).unwrap();
        assert_eq!(new, expected, "from {text}");
    }

    #[test]
    fn one_value_changes_and_nothing_else() {
        check(
            "domains:\n  d:\n    A: x # c\n",
            &["x"],
            &["y"],
            "domains:\n  d:\n    A: y # c\n",
        );
        check(
            "domains: {d: {a: x, b: y}} # c",
            &["x"],
            &["z"],
            "domains: {d: {a: z, b: y}} # c",
        );
        check(
            "domains:\n  d: {a: 'x'}\n",
            &["x"],
            &["*.y"],
            "domains:\n  d: {a: \"*.y\"}\n",
        );
        check(
            "domains:\n  d:\n    a: |\n      1\n      2\n\n    # c\n    b: 1\n",
            &["1\n2\n"],
            &["x"],
            "domains:\n  d:\n    a: x\n\n    # c\n    b: 1\n",
        );
        check(
            "domains:\n  d:\n    a: x # c\n    b: 1",
            &["x"],
            &["1\n\n2\n"],
            "domains:\n  d:\n    a: | # c\n      1\n\n      2\n    b: 1",
        );
        check(
            "domains:\n  d:\n    a: x",
            &["x"],
            &["1\n2"],
            "domains:\n  d:\n    a: |-\n      1\n      2\n",
        );
        check(
            "domains: {d: {a: x}}",
            &["x"],
            &["1\n2"],
            "domains: {d: {a: \"1\\n2\"}}",
        );
    }

    #[test]
    fn lists_keep_what_stays() {
        let block = "domains:\n  d:\n    a:\n      # top\n      - x # one\n      - y\n      # end\n    b: 1\n";
        check(
            block,
            &["x", "y"],
            &["x", "y", "z"],
            "domains:\n  d:\n    a:\n      # top\n      - x # one\n      - y\n      - z\n      # end\n    b: 1\n",
        );
        check(
            block,
            &["x", "y"],
            &["y"],
            "domains:\n  d:\n    a:\n      # top\n      - y\n      # end\n    b: 1\n",
        );
        check(
            block,
            &["x", "y"],
            &["x", "w"],
            "domains:\n  d:\n    a:\n      # top\n      - x # one\n      - w\n      # end\n    b: 1\n",
        );
        check(
            "domains:\n  d:\n    a:\n    - x\n",
            &["x"],
            &["x", "y"],
            "domains:\n  d:\n    a:\n    - x\n    - y\n",
        );
        check(
            "domains:\n  d:\n    a: [x, y]",
            &["x", "y"],
            &["x", "y", "z"],
            "domains:\n  d:\n    a: [x, y, z]",
        );
        check(
            "domains:\n  d:\n    a: [x, y, ]",
            &["x", "y"],
            &["y"],
            "domains:\n  d:\n    a: [y, ]",
        );
        check(
            "domains:\n  d:\n    a: [x, y, w]",
            &["x", "y", "w"],
            &["x"],
            "domains:\n  d:\n    a: [x]",
        );
        check(
            "domains:\n  d:\n    a: [x, y]",
            &["x", "y"],
            &["z"],
            "domains:\n  d:\n    a: z",
        );
        check(
            "domains:\n  d:\n    a: x",
            &["x"],
            &["x", "y y"],
            "domains:\n  d:\n    a: [x, \"y y\"]",
        );
        check(
            "domains:\n  d:\n    a: !file k",
            &["KEY"],
            &["KEY", "y"],
            "domains:\n  d:\n    a: [!file k, y]",
        );
    }

    #[test]
    fn lists_lose_many_at_once() {
        check(
            "domains:\n  d:\n    a:\n    - 1\n    - 2 # two\n    # between\n    - 3\n    - 4 # four\n    - 5\n    b: 1\n",
            &["1", "2", "3", "4", "5"],
            &["2", "4"],
            "domains:\n  d:\n    a:\n    - 2 # two\n    # between\n    - 4 # four\n    b: 1\n",
        );
        check(
            "domains:\n  d:\n    a:\n    - 1\n    - 2\n    - 3",
            &["1", "2", "3"],
            &["2", "4", "5"],
            "domains:\n  d:\n    a:\n    - 2\n    - 4\n    - 5\n",
        );
        for (after, expected) in [
            (&["2", "4"][..], "[ 2, 4 ]"),
            (&["5"], "[ 5 ]"),
            (&["1"], "[ 1 ]"),
            (&["2", "6", "7"], "[ 2, 6, 7 ]"),
        ] {
            check(
                "domains: {d: {a: [ 1, 2, 3,\n 4 , 5 ], b: 1}}",
                &["1", "2", "3", "4", "5"],
                after,
                &format!("domains: {{d: {{a: {expected}, b: 1}}}}"),
            );
        }
    }

    #[test]
    fn attributes_come_and_go() {
        check(
            "domains:\n  d:\n    b: 1 # c\n  # next\n  e: {}\n",
            &[],
            &["x"],
            "domains:\n  d:\n    b: 1 # c\n    a: x\n  # next\n  e: {}\n",
        );
        check(
            "domains:\n  d: {} # c\ncos:\n",
            &[],
            &["x"],
            "domains:\n  d: # c\n    a: x\ncos:\n",
        );
        check(
            "domains:\n  d: ~\n",
            &[],
            &["x", "y"],
            "domains:\n  d:\n    a: [x, y]\n",
        );
        check("domains:\n  d:", &[], &["x"], "domains:\n  d:\n    a: x\n");
        check("domains: {d: {}, e: }", &[], &["x"], "domains: {d: {a: x}, e: }");
        check("domains: {d: , e: }", &[], &["x"], "domains: {d: {a: x} , e: }");
        check("domains: {d: {b: 1}}", &[], &["x"], "domains: {d: {b: 1, a: x}}");
        check(
            "domains:\n  d:\n    a: x # c\n    b: 1\n",
            &["x"],
            &[],
            "domains:\n  d:\n    b: 1\n",
        );
        check(
            "domains:\n  d:\n    a:\n    - x\n    - y\n",
            &["x", "y"],
            &[],
            "domains:\n  d:\n",
        );
        check("domains: {d: {a: x, b: 1}}", &["x"], &[], "domains: {d: {b: 1}}");
        check("domains: {d: {b: 1, a: [x]}}", &["x"], &[], "domains: {d: {b: 1}}");
        check("domains: {d: {a: x ,}}", &["x"], &[], "domains: {d: {}}");
        let value = owned(&["https"]);
        for (text, expected) in [
            ("", "config:\n  a: https\n"),
            ("# c", "# c\nconfig:\n  a: https\n"),
            ("{}", "{config: {a: https}}"),
            ("cos: {default: {}}\n", "cos: {default: {}}\nconfig:\n  a: https\n"),
            ("config: # c\n", "config: # c\n  a: https\n"),
        ] {
            assert_eq!(set(text, CONFIG, ("a", &value), &[]).unwrap(), expected);
        }
    }

    #[test]
    fn entries_come_and_go() {
        let (id, names) = (owned(&["1-2"]), owned(&["m.x", "*.x"]));
        let attributes = [("id", id.as_slice()), ("names", names.as_slice())];
        let lines = "  x:\n    id: 1-2\n    names: [m.x, \"*.x\"]\n";
        for (text, expected) in [
            ("", format!("domains:\n{lines}")),
            (
                "domains:\n  d: {} # c\n\n# next\ncos:\n",
                format!("domains:\n  d: {{}} # c\n{lines}\n# next\ncos:\n"),
            ),
            ("domains: # c\ncos:", format!("domains: # c\n{lines}cos:")),
            ("cos: {}", format!("cos: {{}}\ndomains:\n{lines}")),
            (
                "domains: {d: {}}",
                "domains: {d: {}, x: {id: 1-2, names: [m.x, \"*.x\"]}}".to_owned(),
            ),
        ] {
            assert_eq!(create(text, domain("x"), &attributes).unwrap(), expected);
        }
        assert_eq!(
            create("domains:\n    y:\n", domain("x"), &[]).unwrap(),
            "domains:\n    y:\n    x: {}\n"
        );
        for (text, expected) in [
            (
                "domains:\n  X:\n    id: |\n      1\n    # c\n  y:\n",
                "domains:\n    # c\n  y:\n",
            ),
            (
                "domains:\r  x:\r    id: 1 # c\r  y: {}\rcos: {}\n",
                "domains:\r  y: {}\rcos: {}\n",
            ),
            ("domains: {x: {id: 1}}", "domains: {}"),
            ("domains: {y: , x: {id: 1}}", "domains: {y:}"),
            ("domains: {y: {z}, x: {id: 1}}", "domains: {y: {z}}"),
        ] {
            assert_eq!(delete(text, domain("x")).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_changed_safely_is_refused() {
        let value = owned(&["x"]);
        for text in ["domains: {e: &e {}, d: *e}", "domains: [d]", "domains:\n  d: [a]\n"] {
            assert!(set(text, domain("d"), ("a", &value), &[]).is_err(), "{text}");
        }
        assert!(delete("domains: {}", domain("d")).is_err());
    }

    #[test]
    fn scalars_read_as_they_are_meant() {
        for (value, written) in [
            ("a.b-c_d@e/f+g=", "a.b-c_d@e/f+g="),
            ("null", "\"null\""),
            ("", "\"\""),
            ("- a", "\"- a\""),
            ("a: b # c", "\"a: b # c\""),
            ("::1", "\"::1\""),
            ("ü\t\"\\", "\"ü\\U00000009\\\"\\\\\""),
            ("{}", "\"{}\""),
        ] {
            assert_eq!(scalar(value), written);
        }
    }
}
