//! The header in front of the messages of OAUTHBEARER and SCRAM (RFC 5801 section 4).

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gs2Header {
    /// The client could bind the login to its TLS channel, and believes that the server cannot (`y`).
    pub(crate) could_bind: bool,
    /// Whose mailbox is wanted, where it says so (`a=`).
    pub(crate) authzid: Option<Vec<u8>>,
}

impl Gs2Header {
    /// Parses the header, and returns it with what stands behind it. `None` for `p`: a channel binding, which an end of
    /// TLS in between cannot keep.
    ///
    /// ```text
    /// gs2-header = ("n" / "y") "," ["a=" saslname] ","
    /// ```
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let mut parts = message.splitn(3, |&byte| byte == b',');
        let (flag, identity, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let authzid = match identity {
            b"" => None,
            named => Some(sasl_name(named.strip_prefix(b"a=")?)?),
        };
        let could_bind = match flag {
            b"n" => false,
            b"y" => true,
            _ => return None,
        };
        Some((Self { could_bind, authzid }, rest))
    }
}

/// A name in which `=2C` stands for a comma and `=3D` for an equals sign.
pub(crate) fn sasl_name(text: &[u8]) -> Option<Vec<u8>> {
    let mut parts = text.split(|&byte| byte == b'=');
    let mut name = parts.next()?.to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        name.push(match code {
            b"2C" => b',',
            b"3D" => b'=',
            _ => return None,
        });
        name.extend_from_slice(rest);
    }
    Some(name)
}

/// The same the other way.
pub(crate) fn as_sasl_name(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let check = |message: &str, expected: Option<(bool, Option<&str>, &str)>| {
            let found = Gs2Header::parse(message.as_bytes());
            let expected = expected.map(|(could_bind, authzid, rest)| {
                let authzid = authzid.map(|name| name.as_bytes().to_vec());
                (Gs2Header { could_bind, authzid }, rest.as_bytes())
            });
            assert_eq!(found, expected, "{message:?}");
        };
        check("n,,n=al,r=x", Some((false, None, "n=al,r=x")));
        check("y,a=a=2Cb=3Dc,", Some((true, Some("a,b=c"), "")));
        check("n,a=,x", Some((false, Some(""), "x")));
        for bad in [
            "",
            "n",
            "n,",
            "p=tls-exporter,,x",
            "n,b=al,x",
            "n,a=a=2F,x",
            "n,a=a=,x",
            "N,,x",
        ] {
            check(bad, None);
        }
        assert_eq!(as_sasl_name("a,b=c"), "a=2Cb=3Dc");
    }
}
