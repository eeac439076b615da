//! Places of entries, taken apart (RFC 4514). Pure.

/// The parts of a place, from the entry up: attribute and value, without the escapes.
fn parts(dn: &str) -> Vec<(String, String)> {
    let (mut parts, mut part, mut escaped) = (Vec::new(), String::new(), false);
    for c in dn.chars() {
        match c {
            ',' if !escaped => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(part);
    let split = |part: &String| {
        let (name, value) = part.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), unescaped(value.trim())))
    };
    // Of what is no place, nothing is said.
    parts.iter().map(split).collect::<Option<_>>().unwrap_or_default()
}

/// `\,` and `\2C` are a comma.
fn unescaped(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(value.len()), value.as_bytes());
    while let Some((byte, length)) = first_of(rest) {
        bytes.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first byte, and how many it is written with.
fn first_of(value: &[u8]) -> Option<(u8, usize)> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    Some(match value {
        [b'\\', high, low, ..] if digit(high).is_some() && digit(low).is_some() => {
            let byte = digit(high)? * 16 + digit(low)?;
            (byte as u8, 3)
        }
        [b'\\', byte, ..] => (*byte, 2),
        [byte, ..] => (*byte, 1),
        [] => return None,
    })
}

/// `uid=alice,ou=people,dc=a,dc=test` → `alice@a.test`: the address of an account in a place as Carbonio and Zimbra
/// make them.
pub(super) fn address(dn: &str) -> Option<String> {
    let parts = parts(dn);
    let (name, user) = parts.first()?;
    let labels: Vec<&str> = parts
        .iter()
        .filter(|(name, _)| name == "dc")
        .map(|(_, value)| value.as_str())
        .collect();
    (name == "uid" && !labels.is_empty()).then(|| format!("{user}@{}", labels.join(".")))
}

/// Whether an entry stands directly below another one.
pub(super) fn is_child(dn: &str, base: &str) -> bool {
    let (dn, base) = (parts(dn), parts(base));
    dn.len() == base.len() + 1 && same(&dn[1..], &base)
}

/// Whether both are the same place.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    same(&parts(one), &parts(other))
}

fn same(one: &[(String, String)], other: &[(String, String)]) -> bool {
    let equal = |(a, b): (&(String, String), &(String, String))| a.0 == b.0 && a.1.eq_ignore_ascii_case(&b.1);
    one.len() == other.len() && one.iter().zip(other).all(equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_an_account_says_its_address() {
        for (dn, expected) in [
            ("uid=alice,ou=people,dc=a,dc=test", Some("alice@a.test")),
            ("UID=Bob, OU=people, DC=test", Some("Bob@test")),
            (r"uid=o\2chara\,x,ou=people,dc=test", Some("o,hara,x@test")),
            (r"uid=m\c3\bcller,ou=people,dc=test", Some("müller@test")),
            ("cn=alice,ou=people,dc=test", None),
            ("uid=zimbra,cn=admins,cn=zimbra", None),
            ("uid", None),
            ("", None),
            ("\\", None),
        ] {
            assert_eq!(address(dn).as_deref(), expected, "{dn}");
        }
    }

    #[test]
    fn places_are_compared_part_by_part() {
        assert!(is_child("cn=S1,CN=Servers,cn=zimbra", "cn=servers,cn=zimbra"));
        assert!(!is_child("cn=x,cn=s1,cn=servers,cn=zimbra", "cn=servers,cn=zimbra"));
        assert!(!is_child("cn=servers,cn=zimbra", "cn=servers,cn=zimbra"));
        assert!(is_same("CN=config, cn=zimbra", "cn=config,cn=zimbra"));
        assert!(!is_same("cn=config", "cn=config,cn=zimbra"));
    }
}
