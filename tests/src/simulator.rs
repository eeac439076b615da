//! A fast mailbox server for benchmarks: it accepts every login, and has one mail of any requested size.
//!
//! It speaks as much IMAP and POP3 as the load generator ([`crate::load`]) and Portico need. It checks no
//! password; logins are tested against Dovecot.

use std::sync::Arc;

use anyhow::{Context, Result};
use openssl::ssl::{Ssl, SslAcceptor};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

use crate::load::{Channel, Mail};

/// What it sends of a mail at once.
const CHUNK: usize = 64 * 1024;

/// Serves for ever, inside TLS where there is an acceptor.
pub async fn serve(listener: TcpListener, mail: Mail, tls: Option<SslAcceptor>) {
    serve_as("in", listener, mail, tls).await;
}

/// The same, with this as last word of its answer to an IMAP login.
pub async fn serve_as(word: &'static str, listener: TcpListener, mail: Mail, tls: Option<SslAcceptor>) {
    let tls = tls.map(Arc::new);
    while let Ok((tcp, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            let _the_other_side_left = session(word, tcp, mail, tls).await;
        });
    }
}

async fn session(word: &str, tcp: TcpStream, mail: Mail, tls: Option<Arc<SslAcceptor>>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Channel> = match tls {
        None => Box::new(tcp),
        Some(acceptor) => {
            let mut stream = SslStream::new(Ssl::new(acceptor.context())?, tcp)?;
            std::pin::Pin::new(&mut stream).accept().await?;
            Box::new(stream)
        }
    };
    let stream = BufReader::with_capacity(1024, stream);
    match mail {
        Mail::Imap => imap(word, stream).await,
        Mail::Pop3 => pop3(stream).await,
    }
}

type MailStream = BufReader<Box<dyn Channel>>;

async fn imap(word: &str, mut stream: MailStream) -> Result<()> {
    stream.write_all(b"* OK simulator\r\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let text = line.trim_end().to_owned();
        line.clear();
        let (tag, rest) = text.split_once(' ').context("no command")?;
        let mut words = rest.split(' ');
        match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
            "LOGIN" => {
                literals(&mut stream, text.clone()).await?;
                say(&mut stream, &format!("{tag} OK [CAPABILITY IMAP4rev1 IDLE] {word}")).await?;
            }
            "FETCH" => {
                let size: usize = words.next().context("no size")?.parse()?;
                say(&mut stream, &format!("* 1 FETCH (BODY[] {{{size}}}")).await?;
                send(&mut stream, size).await?;
                say(&mut stream, &format!(")\r\n{tag} OK fetched")).await?;
            }
            "IDLE" => {
                say(&mut stream, "+ idling").await?;
                stream.read_line(&mut line).await?;
                line.clear();
                say(&mut stream, &format!("{tag} OK done")).await?;
            }
            "LOGOUT" => {
                say(&mut stream, &format!("* BYE\r\n{tag} OK out")).await?;
                return Ok(());
            }
            _ => say(&mut stream, &format!("{tag} OK done")).await?,
        }
    }
    Ok(())
}

/// Reads the literals of a command: `{n}` is asked for, `{n+}` comes by itself.
async fn literals(stream: &mut MailStream, mut line: String) -> Result<()> {
    while let Some(length) = line
        .strip_suffix('}')
        .and_then(|l| l.rsplit_once('{'))
        .map(|(_, n)| n.to_owned())
    {
        if !length.ends_with('+') {
            stream.write_all(b"+ go on\r\n").await?;
        }
        let mut literal = vec![0; length.trim_end_matches('+').parse()?];
        stream.read_exact(&mut literal).await?;
        line.clear();
        stream.read_line(&mut line).await?;
        line.truncate(line.trim_end().len());
    }
    Ok(())
}

async fn pop3(mut stream: MailStream) -> Result<()> {
    say(&mut stream, "+OK simulator").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let word = line.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        line.clear();
        match word.as_str() {
            // For a proxy that asks for capabilities: this server takes USER and PASS, also at once.
            "CAPA" => say(&mut stream, "+OK\r\nUSER\r\nPIPELINING\r\n.").await?,
            "STAT" => say(&mut stream, "+OK 1 1024").await?,
            "QUIT" => return say(&mut stream, "+OK").await,
            _ => say(&mut stream, "+OK").await?,
        }
    }
    Ok(())
}

async fn say(stream: &mut MailStream, text: &str) -> Result<()> {
    Ok(stream.write_all(format!("{text}\r\n").as_bytes()).await?)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), mut size: usize) -> Result<()> {
    static MAIL: [u8; CHUNK] = [b'x'; CHUNK];
    while size > 0 {
        let part = size.min(CHUNK);
        stream.write_all(&MAIL[..part]).await?;
        size -= part;
    }
    Ok(())
}
