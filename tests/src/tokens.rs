//! An authorization server that knows some tokens and says whose they are, as far as a mailbox server asks it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};

/// One that listens until the process ends.
pub struct TokenService {
    address: SocketAddrV4,
}

impl TokenService {
    /// Starts one that knows these tokens, each with the address of its user.
    pub fn start(address: SocketAddrV4, tokens: &[(&str, &str)]) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let known: BTreeMap<String, String> = tokens
            .iter()
            .map(|(token, user)| (token.to_string(), user.to_string()))
            .collect();
        let known = Arc::new(known);
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let known = known.clone();
                thread::spawn(move || {
                    let _the_other_side_left = talk(&tcp, &known);
                });
            }
        });
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

fn talk(tcp: &TcpStream, known: &BTreeMap<String, String>) -> Result<()> {
    let mut lines = BufReader::new(tcp).lines();
    while let Some(request) = lines.next().transpose()? {
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        let token = target.split_once("access_token=").map_or("", |(_, token)| token);
        let (status, body) = match known.get(token) {
            Some(user) => ("200 OK", format!("{{\"email\":\"{user}\",\"active\":true}}")),
            None => ("401 Unauthorized", "{\"error\":\"invalid_token\"}".to_owned()),
        };
        let length = body.len();
        write!(
            &mut &*tcp,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
    Ok(())
}
