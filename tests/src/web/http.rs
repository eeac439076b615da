//! HTTP/1.1 as the little web server speaks it: requests, bodies, answers, and the WebSocket upgrade.

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, bail};
use openssl::base64::encode_block;
use openssl::sha::{Sha256, sha1};

/// A login or a short text is kept; of anything longer only the length and the hash.
const KEPT: usize = 64 * 1024;

pub(super) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A request's head.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
}

/// A request's body.
pub(super) struct Body {
    pub(super) head: Vec<u8>,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Request {
    /// None at the end of the connection.
    pub(super) fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let first = read_line(from)?;
        if first.is_empty() {
            return Ok(None);
        }
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().context("no target")?);
        let mut headers = Vec::new();
        loop {
            let line = read_line(from)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Some(Self {
            method,
            target,
            headers,
        }))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

impl Body {
    pub(super) fn read(request: &Request, from: &mut BufReader<Box<dyn Stream>>) -> Result<Self> {
        if request
            .header("expect")
            .is_some_and(|e| e.eq_ignore_ascii_case("100-continue"))
        {
            from.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut intake = Intake {
            head: Vec::new(),
            bytes: 0,
            hash: Sha256::new(),
        };
        if request
            .header("transfer-encoding")
            .is_some_and(|t| t.eq_ignore_ascii_case("chunked"))
        {
            while intake.take_chunk(from)? {}
        } else if let Some(length) = request.header("content-length") {
            intake.take(from, length.parse()?)?;
        }
        let sha256 = super::hex(&intake.hash.finish());
        Ok(Self {
            head: intake.head,
            bytes: intake.bytes,
            sha256,
        })
    }
}

struct Intake {
    head: Vec<u8>,
    bytes: u64,
    hash: Sha256,
}

impl Intake {
    fn take(&mut self, from: &mut impl BufRead, mut count: u64) -> Result<()> {
        while count > 0 {
            let have = from.fill_buf()?;
            if have.is_empty() {
                bail!("the body ended early");
            }
            let part = &have[..have.len().min(usize::try_from(count).unwrap_or(usize::MAX))];
            self.hash.update(part);
            let kept = part.len().min(KEPT.saturating_sub(self.head.len()));
            self.head.extend_from_slice(&part[..kept]);
            let taken = part.len();
            from.consume(taken);
            count -= taken as u64;
            self.bytes += taken as u64;
        }
        Ok(())
    }

    fn take_chunk(&mut self, from: &mut impl BufRead) -> Result<bool> {
        let size = u64::from_str_radix(read_line(from)?.split(';').next().unwrap_or_default().trim(), 16)?;
        self.take(from, size)?;
        read_line(from)?;
        Ok(size > 0)
    }
}

pub(super) fn respond(out: &mut dyn Stream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Result<()> {
    let reason = match status {
        200 => "OK",
        401 => "Unauthorized",
        _ => "Server Error",
    };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    out.write_all(&[head.as_bytes(), body].concat())?;
    Ok(out.flush()?)
}

/// Accepts the upgrade and sends every frame back (RFC 6455; frames below 64 KiB).
pub(super) fn websocket(request: &Request, stream: &mut BufReader<Box<dyn Stream>>) -> Result<()> {
    let key = request.header("sec-websocket-key").context("no key")?;
    let accept = encode_block(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()));
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept";
    stream
        .get_mut()
        .write_all(format!("{head}: {accept}\r\n\r\n").as_bytes())?;
    stream.get_mut().flush()?;
    loop {
        let (first, data) = read_frame(stream)?;
        let mut frame = vec![first];
        match u8::try_from(data.len()) {
            Ok(short) if short < 126 => frame.push(short),
            _ => frame.extend([&[126][..], &(data.len() as u16).to_be_bytes()].concat()),
        }
        frame.extend(data);
        stream.get_mut().write_all(&frame)?;
        stream.get_mut().flush()?;
        if first & 0x0F == 8 {
            bail!("closed");
        }
    }
}

fn read_frame(from: &mut impl Read) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    let mut length = usize::from(head[1] & 0x7F);
    if length == 126 {
        let mut more = [0; 2];
        from.read_exact(&mut more)?;
        length = usize::from(u16::from_be_bytes(more));
    }
    let mut mask = [0; 4];
    from.read_exact(&mut mask)?;
    let mut data = vec![0; length];
    from.read_exact(&mut data)?;
    data.iter_mut()
        .zip(mask.iter().cycle())
        .for_each(|(byte, mask)| *byte ^= mask);
    Ok((head[0], data))
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    from.take(KEPT as u64).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
