//! From lines to words, and from words to changes of attributes.

use mail_directory::attributes;
use mail_directory::edit::{Act, Change};

use crate::provision::{CommandOutput, ProvisionError, values};

/// Values set by other programs are easily lost: they are only replaced with `-r`.
const SAFEGUARDED: [&str; 2] = ["zimbraServiceEnabled", "zimbraServiceInstalled"];
/// Attributes that are no longer used, and since when.
const DEPRECATED: [(&str, &str); 1] = [("zimbraReverseProxyUpstreamServers", "8.5.0")];
/// Longest attribute name. The longest of Zimbra has 70 letters.
const MAX_NAME: usize = 200;

/// Splits a line as Carbonio's shell does: blanks part words, quotes keep them together, a backslash takes the next
/// letter as it is. `#` begins a comment line.
///
/// # Errors
/// A quote is not closed.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let line = line.trim_end_matches(['\r', '\n']);
    if line.trim_start().starts_with('#') {
        return Ok(words);
    }
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('\'' | '"', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            (' ' | '\t', None) => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// Reads `name value` pairs: `+name` adds, `-name` takes away, a repeated name sets several values, and the
/// empty value unsets. Names of the table get its spelling, values the form that the directory keeps.
///
/// # Errors
/// A name that cannot be one; a safeguarded attribute that would be replaced without `may_replace`; a file that
/// cannot be read.
pub(super) fn changes(
    words: &[String],
    may_replace: bool,
    output: &mut CommandOutput,
) -> Result<Vec<Change>, ProvisionError> {
    let mut changes: Vec<Change> = Vec::new();
    for pair in words.chunks_exact(2) {
        let (sign, name) = match pair[0].split_at_checked(1) {
            Some((sign @ ("+" | "-"), name)) => (sign, name),
            _ => ("", pair[0].as_str()),
        };
        let attribute = attributes::find(name).map_or(name, |known| known.name);
        check_name(attribute)?;
        deprecated(attribute, output);
        let value = values::normal(attribute, &pair[1])?;
        let act = match sign {
            "+" => Act::Add(value),
            "-" => Act::Remove(value),
            _ if is(&SAFEGUARDED, attribute) && !may_replace => {
                let message = "error: cannot replace multi-valued attr value unless -r is specified";
                return Err(ProvisionError::Plain(message.to_owned()));
            }
            _ => Act::Replace(Some(value).filter(|value| !value.is_empty()).into_iter().collect()),
        };
        push(&mut changes, attribute, act);
    }
    Ok(changes)
}

fn push(changes: &mut Vec<Change>, attribute: &str, act: Act) {
    let before = changes
        .iter_mut()
        .find(|change| change.attribute.eq_ignore_ascii_case(attribute));
    if let (
        Some(Change {
            act: Act::Replace(values),
            ..
        }),
        Act::Replace(more),
    ) = (before, &act)
    {
        values.extend(more.iter().cloned());
        return;
    }
    changes.push(Change {
        attribute: attribute.to_owned(),
        act,
    });
}

fn check_name(name: &str) -> Result<(), ProvisionError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(good) && name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(ProvisionError::service(
            "account.INVALID_ATTR_NAME",
            format!("invalid attr name: {name:?}"),
        )),
    }
}

fn deprecated(name: &str, output: &mut CommandOutput) {
    if let Some((name, since)) = DEPRECATED.iter().find(|(old, _)| old.eq_ignore_ascii_case(name)) {
        output.warn(format!("Warn: attribute {name} has been deprecated since {since}"));
    }
}

fn is(list: &[&str], name: &str) -> bool {
    list.iter().any(|other| other.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_words() {
        for (line, expected) in [
            ("ms a b\r\n", vec!["ms", "a", "b"]),
            (
                "  md  'a b' \"c \\\" d\" e\\ f ''",
                vec!["md", "a b", "c \" d", "e f", ""],
            ),
            ("md a'b'\"c\"", vec!["md", "abc"]),
            ("'\\n'", vec!["\\n"]),
            ("  # md a b", vec![]),
            ("md a #b", vec!["md", "a", "#b"]),
            ("", vec![]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
        assert!(split("md 'a").is_err());
    }

    fn read(line: &str, may_replace: bool) -> Result<(Vec<Change>, Vec<String>), ProvisionError> {
        let mut output = CommandOutput::default();
        let changes = changes(&split(line).unwrap(), may_replace, &mut output)?;
        Ok((changes, output.warnings))
    }

    #[test]
    fn pairs_become_changes() {
        let (changes, warnings) = read(
            "zimbravirtualHostName a +ZIMBRAvirtualhostname b zimbraVirtualHostname c -x y displayname ''",
            false,
        )
        .unwrap();
        assert!(warnings.is_empty());
        let texts = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let expected = [
            ("zimbraVirtualHostname", Act::Replace(texts(&["a", "c"]))),
            ("zimbraVirtualHostname", Act::Add("b".to_owned())),
            ("x", Act::Remove("y".to_owned())),
            ("displayname", Act::Replace(vec![])),
        ];
        let expected: Vec<Change> = expected
            .into_iter()
            .map(|(attribute, act)| Change {
                attribute: attribute.to_owned(),
                act,
            })
            .collect();
        assert_eq!(changes, expected);
    }

    #[test]
    fn safeguards_deprecation_and_bad_names() {
        let refused = read("zimbraserviceenabled proxy", false).unwrap_err();
        let message = "error: cannot replace multi-valued attr value unless -r is specified";
        assert_eq!(refused, ProvisionError::Plain(message.to_owned()));
        assert_eq!(read("zimbraServiceEnabled proxy", true).unwrap().0.len(), 1);
        assert_eq!(read("+zimbraServiceEnabled proxy", false).unwrap().0.len(), 1);
        assert_eq!(
            read("zimbraReverseProxyUpstreamServers x", false).unwrap().1,
            ["Warn: attribute zimbraReverseProxyUpstreamServers has been deprecated since 8.5.0"]
        );
        for name in ["'a b'", "''", "1a", "a:b", "+"] {
            assert!(read(&format!("{name} v"), false).is_err(), "{name}");
        }
    }
}
