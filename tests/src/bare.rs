//! The bare proxy on Pingora of `benches/bare`, to compare Portico with.

use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::Stage;
use crate::certs::Pair;
use crate::child::Child;

/// A running bare proxy. It is killed when dropped.
pub struct Bare(Child);

impl Bare {
    /// Starts it in front of a web server.
    pub fn start(stage: &Stage, [http, https]: [SocketAddrV4; 2], pair: &Pair, server: SocketAddrV4) -> Result<Self> {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bare/release/bare");
        ensure!(
            binary.is_file(),
            "there is no {}: `make bench` builds it",
            binary.display()
        );
        let [http_text, https_text, server] = [http, https, server].map(|address| address.to_string());
        let args = [
            http_text.as_str(),
            https_text.as_str(),
            pair.certificate_file.to_str().context("path")?,
            pair.key_file.to_str().context("path")?,
            server.as_str(),
        ];
        let log = stage.path().join("bare.log");
        let mut child = Child::spawn("bare", binary.to_str().context("path")?, &args, &[], &log)?;
        child.wait_listening(&[http, https])?;
        Ok(Self(child))
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> Result<u64> {
        self.0.cpu_ticks()
    }
}
