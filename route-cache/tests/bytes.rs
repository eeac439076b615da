//! Random bytes, and good ones that were spoilt, from everybody who speaks to the route cache.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

#[path = "bytes/checks.rs"]
mod checks;

/// Inputs of one kind.
const ROUNDS: usize = 20_000;

/// Marsaglia's xorshift: the same bytes in each run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    /// Pieces one after the other, some of them spoilt.
    fn bytes(&mut self, pieces: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.below(12) {
            bytes.extend_from_slice(pieces[self.below(pieces.len())].as_bytes());
        }
        self.spoil(&mut bytes);
        bytes
    }

    /// A whole message with one piece put in, taken out or changed.
    fn spoilt(&mut self, whole: &str, pieces: &[&str]) -> Vec<u8> {
        let mut bytes = whole.as_bytes().to_vec();
        let at = self.below(bytes.len() + 1);
        match self.below(4) {
            0 => drop(bytes.splice(at..at, pieces[self.below(pieces.len())].bytes())),
            1 => bytes.truncate(at),
            2 => self.spoil(&mut bytes),
            _ => drop(bytes.drain(at..(at + self.below(40)).min(bytes.len()))),
        }
        bytes
    }

    fn spoil(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.below(3) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                bytes[at] = self.below(256) as u8;
            }
        }
    }
}

#[track_caller]
fn check(seed: u64, wholes: &[&str], pieces: &[&str], check: impl Fn(&[u8])) {
    let mut chance = Chance(seed);
    let (mut count, long) = (0, "x".repeat(20_000));
    for whole in wholes {
        check(whole.as_bytes());
        check(&[whole, long.as_str()].concat().into_bytes());
    }
    while count < ROUNDS {
        let whole = wholes[chance.below(wholes.len())];
        check(&chance.bytes(pieces));
        check(&chance.spoilt(whole, pieces));
        count += 2;
    }
    check(long.as_bytes());
}

#[test]
fn from_memcached() {
    let wholes = [
        "END\r\n",
        "VALUE k1 0 14\r\n10.0.0.11:7993\r\nEND\r\n",
        "VALUE k1 0 0\r\n\r\nEND\r\n",
        "STORED\r\n",
        "DELETED\r\n",
        "NOT_FOUND\r\n",
        "SERVER_ERROR out of memory\r\n",
    ];
    let pieces = [
        "VALUE ",
        "k1",
        " 0 ",
        "14",
        "1024",
        "99999999999999999999",
        "\r\n",
        "\r",
        "\n",
        "END\r\n",
        "STORED\r\n",
        "NOT_STORED\r\n",
        "DELETED\r\n",
        "10.0.0.11:7993",
        " ",
        "-1",
        "\0",
        "\u{e9}",
    ];
    check(0x9e37_79b9_7f4a_7c15, &wholes, &pieces, checks::memcached_reply);
}

#[test]
fn from_a_lookup_service() {
    let wholes = [
        "HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 10.0.0.11\r\nAuth-Port: 7993\r\nAuth-User: a%20b@a.test\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nAuth-Status: user not found:x\r\nAuth-Wait: 10\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    let pieces = [
        "HTTP/1.1 ",
        "HTTP/1.0 ",
        "200",
        "503 no",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "Auth-Status: OK\r\n",
        "Auth-Port: 99999\r\n",
        "Auth-User: %4\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 5\r\n",
        ":",
        " ",
        "\t",
        "\0",
        "Connection: close\r\n",
        "\u{e9}: \u{e9}\r\n",
    ];
    check(0xd1b5_4a32_d192_ed03, &wholes, &pieces, checks::lookup_response);
}

#[test]
fn from_an_old_proxy() {
    let wholes = [
        "GET /service/extension/nginx-lookup HTTP/1.0\r\nHost: x\r\nAuth-Method: username\r\nAuth-User: alice@a.test\r\nAuth-Pass: _password_\r\nAuth-Protocol: imapssl\r\nAuth-Login-Attempt: 1\r\nX-Proxy-IP: 192.0.2.10\r\nClient-IP: 203.0.113.7\r\n\r\n",
        "GET /service/extension/nginx-lookup HTTP/1.1\r\nAuth-Method: zimbraId\r\nAuth-User: id-alice\r\nAuth-Protocol: httpssl\r\nX-Proxy-Host: mail.a.test:443\r\nAuth-Zimbra-Admin: True\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    ];
    let pieces = [
        "GET /service/extension/nginx-lookup HTTP/1.0\r\n",
        "GET ",
        "/service/extension/nginx-lookup?x",
        " HTTP/1.1\r\n",
        "Auth-Method: username\r\n",
        "Auth-Method: gssapi\r\n",
        "Auth-User: alice\r\n",
        "Auth-User: %0d%0aX: y\r\n",
        "Auth-User: \u{85}\u{2028}\r\n",
        "Auth-Protocol: imap\r\n",
        "Auth-Protocol: x%0d\r\n",
        "X-Proxy-Host: [::1\r\n",
        "Client-IP: ::ffff:1.2.3.4\r\n",
        "Connection: keep-alive\r\n",
        "Transfer-Encoding: chunked\r\n",
        "\r\n",
        "%00",
        "%",
        "\0",
    ];
    let house = checks::House::open();
    check(0x94d0_49bb_1331_11eb, &wholes, &pieces, |bytes| {
        house.lookup_request(bytes)
    });
}
