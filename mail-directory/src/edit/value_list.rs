//! The values of one attribute while they are changed: found by any of their spellings, however many there are; pure.

use std::collections::HashMap;

use crate::names;

/// ValueList in their order.
pub(super) struct ValueList {
    /// What was removed leaves its place empty.
    all: Vec<Option<String>>,
    /// By every form in which a value is compared.
    places: HashMap<String, Vec<usize>>,
}

impl ValueList {
    pub(super) fn of(values: &[String]) -> Self {
        let mut all = Self {
            all: Vec::with_capacity(values.len()),
            places: HashMap::with_capacity(values.len()),
        };
        values.iter().for_each(|value| all.push(value));
        all
    }

    /// At the end, unless it is there.
    pub(super) fn add(&mut self, value: &str) {
        let known = |form| self.places.get(&form).is_some_and(|places| !places.is_empty());
        if !forms(value).any(known) {
            self.push(value);
        }
    }

    pub(super) fn remove(&mut self, value: &str) {
        for form in forms(value) {
            for place in self.places.remove(&form).unwrap_or_default() {
                let Some(value) = self.all[place].take() else { continue };
                for other in forms(&value) {
                    if let Some(places) = self.places.get_mut(&other) {
                        places.retain(|of| *of != place);
                    }
                }
            }
        }
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.all.into_iter().flatten().collect()
    }

    fn push(&mut self, value: &str) {
        for form in forms(value) {
            self.places.entry(form).or_default().push(self.all.len());
        }
        self.all.push(Some(value.to_owned()));
    }
}

/// Two values are the same where they share one of these: what a value is, a name or a word, is not known here.
fn forms(value: &str) -> impl Iterator<Item = String> {
    let (first, second) = match value.is_ascii() {
        true => (value.to_ascii_lowercase(), None),
        false => (names::account(value), Some(names::host(value))),
    };
    let second = second.filter(|second| *second != first);
    std::iter::once(first).chain(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(list: &[&str]) -> ValueList {
        let list: Vec<String> = list.iter().map(|&value| value.to_owned()).collect();
        ValueList::of(&list)
    }

    #[test]
    fn every_spelling_finds_a_value() {
        let mut some = values(&["B\u{fc}cher.example", "x", "eve@xn--bcher-kva.example", "X"]);
        some.add("xn--bcher-kva.EXAMPLE");
        some.add("Eve@b\u{fc}cher.example");
        some.add("y");
        some.remove("x");
        some.add("X");
        some.remove("z");
        assert_eq!(
            some.into_vec(),
            ["B\u{fc}cher.example", "eve@xn--bcher-kva.example", "y", "X"]
        );
        let mut other = values(&["xn--bcher-kva.example", "a", "A"]);
        other.remove("BU\u{308}CHER.example");
        other.remove("a");
        other.remove("a");
        assert!(other.into_vec().is_empty());
    }
}
