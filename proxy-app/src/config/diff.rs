//! What differs between two node files as they are written, key by key.

/// Notes in `changed` which keys below `key` differ: the whole path of each, in order. A list is one value.
pub(super) fn differences(
    key: &str,
    old: Option<&serde_yaml::Value>,
    new: Option<&serde_yaml::Value>,
    changed: &mut Vec<String>,
) {
    let nothing = |value: Option<&serde_yaml::Value>| value.is_none_or(serde_yaml::Value::is_null);
    if old == new || (nothing(old) && nothing(new)) {
        return;
    }
    let mappings = [old, new].map(|value| value.and_then(serde_yaml::Value::as_mapping));
    // A section that is added or removed as a whole counts as its keys; an empty one counts as nothing.
    let is_section =
        |value: Option<&serde_yaml::Value>| value.is_none_or(|value| value.is_null() || value.is_mapping());
    if mappings.iter().all(Option::is_none) || !is_section(old) || !is_section(new) {
        changed.push(key.to_owned());
        return;
    }
    let mut names: Vec<&str> = mappings
        .iter()
        .flatten()
        .flat_map(|mapping| mapping.keys().filter_map(serde_yaml::Value::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let [old, new] = mappings.map(|mapping| mapping.and_then(|mapping| mapping.get(name)));
        let below = match key {
            "" => name.to_owned(),
            _ => format!("{key}.{name}"),
        };
        differences(&below, old, new, changed);
    }
}
