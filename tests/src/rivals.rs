//! Other front doors before the same servers as Portico, to compare it with: nginx with its mail module, HAProxy, and the
//! bare proxy on Pingora. One thread or worker each, no access log, no TLS resumption.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::Stage;
use crate::bare::Bare;
use crate::certs::Pair;
use crate::child::Child;
use crate::load::Mail;

/// Where Debian's package `libnginx-mod-mail` has it.
const MAIL_MODULE: &str = "/usr/lib/nginx/modules/ngx_mail_module.so";

/// Without TLS or with it.
#[derive(Debug, Clone, Copy)]
pub enum Endpoint {
    /// Clear text.
    Plain,
    /// TLS from the first byte.
    Tls,
}

/// Where everything is, at a front door or at the servers.
#[derive(Debug)]
pub struct Addresses {
    /// The web in clear text.
    pub http: SocketAddrV4,
    /// The web.
    pub https: SocketAddrV4,
    mail: [[SocketAddrV4; 2]; 2],
}

impl Addresses {
    /// Free ones.
    pub fn new(stage: &Stage, ip: Ipv4Addr) -> Result<Self> {
        let any = || anyhow::Ok(SocketAddrV4::new(ip, stage.port()?));
        Ok(Self {
            http: any()?,
            https: any()?,
            mail: [[any()?, any()?], [any()?, any()?]],
        })
    }

    /// That of a mail protocol.
    pub fn mail(&self, mail: Mail, endpoint: Endpoint) -> SocketAddrV4 {
        self.mail[mail as usize][endpoint as usize]
    }

    fn all(&self) -> Vec<SocketAddrV4> {
        let mail = self.mail.as_flattened().iter();
        [self.http, self.https].iter().chain(mail).copied().collect()
    }
}

/// Another front door. It is killed when dropped.
pub struct Rival {
    /// What it is called.
    pub name: &'static str,
    /// Where it listens.
    pub at: Addresses,
    program: Program,
}

enum Program {
    Child(Child),
    Bare(Bare),
}

impl Rival {
    /// nginx, which asks `auth` for the servers of accounts.
    pub fn nginx(stage: &Stage, pair: &Pair, back: &Addresses, auth: SocketAddrV4) -> Result<Self> {
        ensure!(
            Path::new(MAIL_MODULE).is_file(),
            "there is no mail module of nginx: `scripts/install bench` installs it"
        );
        let at = Addresses::new(stage, Ipv4Addr::LOCALHOST)?;
        let dir = stage.dir("rival-nginx")?;
        let config = dir.join("nginx.conf");
        std::fs::write(&config, nginx_config(&dir, pair, &at, back, auth)?)?;
        let prefix = format!("{}/", dir.display());
        let args = ["-p", &prefix, "-c", config.to_str().context("path")?, "-e", "stderr"];
        let mut child = Child::spawn("nginx", "nginx", &args, &[], &dir.join("output.log"))?;
        child.wait_listening(&at.all())?;
        Ok(Self {
            name: "nginx",
            at,
            program: Program::Child(child),
        })
    }

    /// HAProxy, which relays mail to one server without a look at it.
    pub fn haproxy(stage: &Stage, pair: &Pair, back: &Addresses) -> Result<Self> {
        let at = Addresses::new(stage, Ipv4Addr::LOCALHOST)?;
        let both = [&pair.certificate_file, &pair.key_file].map(std::fs::read_to_string);
        let [certificate, key] = both;
        let pem = stage.file("rival-haproxy/pair.pem", certificate? + &key?)?;
        let config = stage.file("rival-haproxy/haproxy.cfg", haproxy_config(&pem, &at, back)?)?;
        let args = ["-db", "-f", config.to_str().context("path")?];
        let mut child = Child::spawn("haproxy", "haproxy", &args, &[], &config.with_file_name("output.log"))?;
        child.wait_listening(&at.all())?;
        Ok(Self {
            name: "HAProxy",
            at,
            program: Program::Child(child),
        })
    }

    /// The bare proxy, which has the web only.
    pub fn bare(stage: &Stage, pair: &Pair, back: &Addresses) -> Result<Self> {
        let at = Addresses::new(stage, Ipv4Addr::LOCALHOST)?;
        let bare = Bare::start(stage, [at.http, at.https], pair, back.http)?;
        Ok(Self {
            name: "bare",
            at,
            program: Program::Bare(bare),
        })
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> Result<u64> {
        match &self.program {
            Program::Child(child) => child.cpu_ticks(),
            Program::Bare(bare) => bare.cpu_ticks(),
        }
    }
}

/// Answers nginx's questions for servers (`auth_http`): always these. Serves for ever.
pub async fn auth(listener: TcpListener, [imap, pop3]: [SocketAddrV4; 2]) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = [0; 2048];
            let read = tcp.read(&mut head).await.unwrap_or_default();
            let asks_pop3 = head[..read].windows(4).any(|word| word == b"pop3");
            let server = if asks_pop3 { pop3 } else { imap };
            let (ip, port) = (server.ip(), server.port());
            let answer =
                format!("HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: {ip}\r\nAuth-Port: {port}\r\n\r\n");
            let _nginx_left = tcp.write_all(answer.as_bytes()).await;
        });
    }
}

fn nginx_config(dir: &Path, pair: &Pair, at: &Addresses, back: &Addresses, auth: SocketAddrV4) -> Result<String> {
    let dir = dir.display();
    let (certificate, key) = (pair.certificate_file.display(), pair.key_file.display());
    let tls = format!("ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_session_tickets off;");
    let mut config = format!(
        "load_module {MAIL_MODULE};\ndaemon off; worker_processes 1; pid {dir}/pid; error_log stderr warn; user root;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n  access_log off; keepalive_requests 100000000; client_max_body_size 0;\n\
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
           uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi; {tls}\n\
           upstream server {{ server {}; keepalive 512; }}\n\
           server {{\n    listen {}; listen {} ssl http2;\n\
             location / {{ proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection '';\n\
               proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}\n  }}\n}}\n\
         mail {{\n  server_name mail.example.test; auth_http {auth}/; proxy on; {tls}\n",
        back.http, at.http, at.https
    );
    for (mail, protocol) in [(Mail::Imap, "imap"), (Mail::Pop3, "pop3")] {
        for (endpoint, how) in [(Endpoint::Plain, ""), (Endpoint::Tls, " ssl")] {
            writeln!(
                config,
                "  server {{ listen {}{how}; protocol {protocol}; }}",
                at.mail(mail, endpoint)
            )?;
        }
    }
    Ok(config + "}\n")
}

fn haproxy_config(pem: &Path, at: &Addresses, back: &Addresses) -> Result<String> {
    let pem = pem.display();
    let mut config = format!(
        "global\n  nbthread 1\n  tune.ssl.cachesize 0\n  ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets\n\
         defaults\n  timeout connect 5s\n  timeout client 30m\n  timeout server 30m\n\
         frontend web\n  mode http\n  bind {}\n  bind {} ssl crt {pem} alpn h2,http/1.1\n  option forwardfor\n\
         \x20 default_backend web\nbackend web\n  mode http\n  http-reuse always\n  server b {}\n",
        at.http, at.https, back.http
    );
    for (mail, protocol) in [(Mail::Imap, "imap"), (Mail::Pop3, "pop3")] {
        let [plain, tls] = [Endpoint::Plain, Endpoint::Tls].map(|endpoint| at.mail(mail, endpoint));
        let server = back.mail(mail, Endpoint::Plain);
        writeln!(
            config,
            "listen {protocol}\n  mode tcp\n  bind {plain}\n  bind {tls} ssl crt {pem}\n  server b {server}"
        )?;
    }
    Ok(config)
}
