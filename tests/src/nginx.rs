//! A real nginx as web server of a mailbox server.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::Stage;
use crate::certs::Pair;
use crate::child::Child;

/// How long it may take to end.
const END: Duration = Duration::from_secs(20);

/// A running nginx with one server. It is killed when dropped.
pub struct Nginx {
    dir: PathBuf,
    addresses: [SocketAddrV4; 2],
    child: Child,
}

impl Nginx {
    /// Starts one that listens on `http`, and with TLS and HTTP/2 on `https`; `locations` is what stands in its
    /// `server` block. Relative paths there start from [`Nginx::dir`].
    pub fn start(
        stage: &Stage,
        name: &str,
        [http, https]: [SocketAddrV4; 2],
        pair: &Pair,
        locations: &str,
    ) -> Result<Self> {
        let dir = stage.dir(&format!("nginx-{name}"))?;
        let text = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log stderr warn; user root;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log {dir}/asked; sendfile on; keepalive_requests 100000000; client_max_body_size 0;\n\
               client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
               uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi; default_type text/plain;\n\
               server {{\n    listen {http}; listen {https} ssl http2;\n\
                 ssl_certificate {certificate}; ssl_certificate_key {key};\n\
                 location = /service/health/ready {{ access_log off; return 200 '{{}}'; }}\n{locations}\n  }}\n}}\n",
            dir = dir.display(),
            certificate = pair.certificate_file.display(),
            key = pair.key_file.display(),
        );
        std::fs::write(dir.join("nginx.conf"), text)?;
        let addresses = [http, https];
        let child = spawn(&dir, &addresses)?;
        Ok(Self { dir, addresses, child })
    }

    /// Its folder, where it also logs its requests (`asked`).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its requests so far, one line for each.
    pub fn request_log(&self) -> String {
        std::fs::read_to_string(self.dir.join("asked")).unwrap_or_default()
    }

    /// Ends it at once: requests under way are cut off.
    pub fn stop(&mut self) -> Result<()> {
        self.child.signal(Signal::SIGTERM)?;
        self.child.wait(END).map(drop)
    }

    /// Starts it again with the same addresses.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.dir, &self.addresses)?;
        Ok(())
    }
}

fn spawn(dir: &Path, addresses: &[SocketAddrV4]) -> Result<Child> {
    let config = dir.join("nginx.conf");
    let prefix = format!("{}/", dir.display());
    let args = ["-p", &prefix, "-c", config.to_str().context("path")?, "-e", "stderr"];
    let mut child = Child::spawn("nginx", "nginx", &args, &[], &dir.join("output.log"))?;
    child.wait_listening(addresses)?;
    Ok(child)
}
