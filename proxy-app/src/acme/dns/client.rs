//! Questions to name servers, each with a deadline: to resolvers, or to one server about its own zones.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::acme::dns::message::{DnsAnswer, NO_NAME, RecordContent, RecordType, answer, question};
use crate::acme::dns::name::DnsName;

/// The port of name servers.
pub(crate) const DNS_PORT: u16 = 53;
/// How long a server may take; it is asked twice, for a datagram may be lost.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// How long it may take over TCP, the connection included.
const TCP_WAIT: Duration = Duration::from_secs(10);
/// Most of an answer that comes in a datagram: no more was asked for (RFC 1035 §4.2.1). One octet more tells.
const DATAGRAM_MAX: usize = 4096;
/// Most resolvers (resolv.conf(5)).
const RESOLVERS_MAX: usize = 3;
/// Most names that stand for each other.
const ALIASES_MAX: usize = 8;
/// Most servers of a zone that are asked.
const SERVERS_MAX: usize = 16;
/// Where the system's resolvers stand.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is known of a host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HostRecords {
    /// Whether the name is there at all.
    pub exists: bool,
    /// The names that stand in its place, one after the other (RFC 1034 §3.6.2).
    pub aliases: Vec<DnsName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl HostRecords {
    fn add(&mut self, answer: DnsAnswer) {
        self.exists |= answer.code != NO_NAME;
        for record in answer.answers {
            match record.content {
                RecordContent::Address(address) => self.addresses.push(address),
                RecordContent::Alias(to) if !self.aliases.contains(&to) => self.aliases.push(to),
                _ => {}
            }
        }
    }
}

/// Servers that answer alike.
#[derive(Debug, Clone)]
pub(crate) struct DnsClient {
    /// Asked in this order.
    servers: Vec<SocketAddr>,
    /// Whether they are to ask others.
    asks_others: bool,
}

/// Why something cannot be found out.
#[derive(Debug)]
pub(crate) struct DnsFailure {
    /// In words.
    pub why: String,
    /// No server says anything: it may be no fault of the name.
    pub is_silence: bool,
}

impl From<String> for DnsFailure {
    fn from(why: String) -> Self {
        let is_silence = false;
        Self { why, is_silence }
    }
}

impl From<DnsFailure> for String {
    fn from(failure: DnsFailure) -> Self {
        failure.why
    }
}

impl DnsClient {
    /// Resolvers: these, or else the system's.
    pub(crate) async fn of_resolvers(configured: &[SocketAddr]) -> Self {
        let servers = match configured {
            [] => {
                let text = tokio::fs::read_to_string(RESOLV_CONF).await;
                resolvers(&text.unwrap_or_default())
            }
            configured => configured.to_vec(),
        };
        Self {
            servers,
            asks_others: true,
        }
    }

    /// A server, by its addresses, that is asked about what it has itself.
    pub(crate) fn of_servers(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            asks_others: false,
        }
    }

    /// What the first server says that can say something: the records, or that there are none.
    ///
    /// # Errors
    /// No server answers, or none can.
    pub(crate) async fn ask(&self, name: &DnsName, kind: RecordType) -> Result<DnsAnswer, DnsFailure> {
        let (mut why, mut is_silence) = (String::new(), true);
        for server in &self.servers {
            let message = question(rand::random(), name, kind, self.asks_others);
            match exchange(*server, &message).await {
                Ok(answer) if matches!(answer.code, 0 | NO_NAME) => return Ok(answer),
                Ok(answer) => {
                    is_silence = false;
                    why = format!("the name server {server} answers {} for {name}", code_word(answer.code));
                }
                Err(error) => why = format!("the name server {server} does not answer for {name}: {error}"),
            }
        }
        Err(DnsFailure { why, is_silence })
    }

    /// The name that stands in place of this one, or itself (RFC 1034 §3.6.2).
    ///
    /// # Errors
    /// It cannot be found out, or they lead in a circle.
    pub(crate) async fn followed(&self, name: &DnsName) -> Result<DnsName, DnsFailure> {
        let mut here = name.clone();
        for _ in 0..ALIASES_MAX {
            let answer = self.ask(&here, RecordType::Cname).await?;
            let alias = answer.answers.into_iter().find_map(|record| match record.content {
                RecordContent::Alias(to) if record.name == here => Some(to),
                _ => None,
            });
            match alias {
                Some(to) => here = to,
                None => return Ok(here),
            }
        }
        Err(format!("more than {ALIASES_MAX} CNAME records from {name}").into())
    }

    /// The zone of a name.
    ///
    /// # Errors
    /// It cannot be found out.
    pub(crate) async fn zone_of(&self, name: &DnsName) -> Result<DnsName, DnsFailure> {
        let mut at = Some(name.clone());
        while let Some(here) = at {
            let answer = self.ask(&here, RecordType::Soa).await?;
            let mut records = answer.answers.into_iter().chain(answer.authorities);
            let zone =
                records.find(|record| record.content == RecordContent::ZoneBegin && name.is_within(&record.name));
            if let Some(zone) = zone {
                return Ok(zone.name);
            }
            at = here.parent();
        }
        Err(format!("no name server knows the zone of {name}").into())
    }

    /// The addresses of a host.
    ///
    /// # Errors
    /// They cannot be found out.
    pub(crate) async fn addresses(&self, host: &DnsName) -> Result<Vec<IpAddr>, DnsFailure> {
        self.host(host).await.map(|records| records.addresses)
    }

    /// The addresses of a host, and the names that stand in its place.
    ///
    /// # Errors
    /// They cannot be found out.
    pub(crate) async fn host(&self, host: &DnsName) -> Result<HostRecords, DnsFailure> {
        let both = tokio::join!(self.ask(host, RecordType::A), self.ask(host, RecordType::Aaaa));
        let (mut records, mut failure) = (HostRecords::default(), None);
        for answer in [both.0, both.1] {
            match answer {
                Ok(answer) => records.add(answer),
                Err(why) => failure = Some(why),
            }
        }
        // Those of one family will do where the other cannot be asked for.
        match failure.filter(|_| records.addresses.is_empty()) {
            Some(why) => Err(why),
            None => Ok(records),
        }
    }

    /// The servers of a zone, at most so many as are asked.
    ///
    /// # Errors
    /// They cannot be found out, or there are none.
    pub(crate) async fn servers_of(&self, zone: &DnsName) -> Result<Vec<IpAddr>, DnsFailure> {
        let answer = self.ask(zone, RecordType::Ns).await?;
        let names = answer.answers.into_iter().filter_map(|record| match record.content {
            RecordContent::Server(name) => Some(name),
            _ => None,
        });
        let mut servers = Vec::new();
        for name in names.take(SERVERS_MAX) {
            // One that has no address leaves the others.
            servers.extend(self.addresses(&name).await.unwrap_or_default());
        }
        servers.sort_unstable();
        servers.dedup();
        servers.truncate(SERVERS_MAX);
        match servers.is_empty() {
            true => Err(format!("the zone {zone} has no name servers with addresses").into()),
            false => Ok(servers),
        }
    }
}

impl fmt::Display for DnsClient {
    /// The first address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.servers.first().map_or(Ok(()), |server| write!(f, "{server}"))
    }
}

/// Sends a question, over TCP where the answer is too long for a datagram.
async fn exchange(server: SocketAddr, message: &[u8]) -> Result<DnsAnswer, String> {
    let mut why = String::new();
    for _ in 0..TRIES {
        match timeout(ANSWER_WAIT, by_datagram(server, message)).await {
            Ok(Ok(answer)) if answer.is_truncated => {
                let whole = by_stream(server, message).await?;
                let answer = answer_to(message, &whole)?;
                return match answer.is_truncated {
                    true => Err("its answer is cut off".to_owned()),
                    false => Ok(answer),
                };
            }
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => "no answer in time".clone_into(&mut why),
        }
    }
    Err(why)
}

/// From a port of its own each time, and whatever does not answer the question is passed over: anybody may send it.
async fn by_datagram(server: SocketAddr, message: &[u8]) -> std::io::Result<DnsAnswer> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = answer(message, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

/// Sends a message over TCP (RFC 1035 §4.2.2), and returns what is sent back: at most 64 KiB.
///
/// # Errors
/// There is no answer in time.
pub(crate) async fn by_stream(server: SocketAddr, message: &[u8]) -> Result<Vec<u8>, String> {
    let length = u16::try_from(message.len()).map_err(|_| "the message is too long".to_owned())?;
    let exchanged = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(TCP_WAIT, exchanged).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// The answer to this message.
///
/// # Errors
/// It is none.
pub(crate) fn answer_to(asked: &[u8], message: &[u8]) -> Result<DnsAnswer, String> {
    answer(asked, message).ok_or_else(|| "what it answers is no DNS message".to_owned())
}

/// As servers and their logs call it (RFC 1035 §4.1.1, RFC 2136 §2.2).
pub(crate) fn code_word(code: u8) -> String {
    let word = match code {
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        code => return format!("with error {code}"),
    };
    word.to_owned()
}

/// resolv.conf(5)
fn resolvers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        words.next()?.parse::<IpAddr>().ok()
    });
    let mut resolvers: Vec<IpAddr> = addresses.take(RESOLVERS_MAX).collect();
    if resolvers.is_empty() {
        resolvers.push(Ipv4Addr::LOCALHOST.into());
    }
    resolvers
        .into_iter()
        .map(|address| SocketAddr::new(address, DNS_PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::dns::message::DnsRecord;

    #[test]
    fn a_host_is_known_by_the_answers_for_both_families() {
        let name = |text: &str| DnsName::parse(text).unwrap();
        let record = |at: &str, content: RecordContent| DnsRecord {
            name: name(at),
            content,
        };
        let address = |at: &str, ip: &str| record(at, RecordContent::Address(ip.parse().unwrap()));
        let alias = || record("a.test", RecordContent::Alias(name("b.test")));
        let answer = |code: u8, answers: Vec<DnsRecord>| DnsAnswer {
            code,
            is_truncated: false,
            is_authoritative: false,
            answers,
            authorities: Vec::new(),
        };
        let mut records = HostRecords::default();
        records.add(answer(NO_NAME, Vec::new()));
        assert_eq!(records, HostRecords::default());
        records.add(answer(0, vec![alias(), address("b.test", "192.0.2.1")]));
        records.add(answer(0, vec![alias(), address("b.test", "2001:db8::1")]));
        let expected = HostRecords {
            exists: true,
            aliases: vec![name("b.test")],
            addresses: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
        };
        assert_eq!(records, expected);
    }

    #[test]
    fn resolvers_are_those_of_the_system() {
        let text =
            "# nameserver 1.1.1.1\nsearch a.example\nnameserver 192.0.2.1 # ours\nnameserver ::1\nnameserver x\n";
        let expected: Vec<SocketAddr> = ["192.0.2.1:53", "[::1]:53"].map(|text| text.parse().unwrap()).into();
        assert_eq!(resolvers(text), expected);
        assert_eq!(resolvers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
