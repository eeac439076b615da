//! A real Jetty 9.4, the server under Carbonio's and Zimbra's mailbox, with servlets that answer with their names.

use std::net::SocketAddrV4;
use std::path::Path;

use anyhow::Result;

use crate::Stage;
use crate::child::Child;

/// Where Debian keeps the libraries.
const LIBRARIES: &str = "/usr/share/java";
/// What a server with servlets needs of them.
const NEEDED: [&str; 7] = [
    "jetty9-http",
    "jetty9-io",
    "jetty9-security",
    "jetty9-server",
    "jetty9-servlet",
    "jetty9-util",
    "servlet-api",
];
const SOURCE: &str = include_str!("jetty/Mailbox.java");

/// A running Jetty. Its servlets: `admin`, `extension` and `service` below `/service`, `home` below `/home`, and
/// `root` for all else; each answers with its name in `X-Servlet`. It is killed when dropped.
pub struct Jetty {
    _child: Child,
}

impl Jetty {
    /// Starts one that listens here, in clear text.
    pub fn start(stage: &Stage, at: SocketAddrV4) -> Result<Self> {
        let source = stage.file("Mailbox.java", SOURCE)?;
        let libraries = NEEDED.map(|name| format!("{LIBRARIES}/{name}.jar")).join(":");
        let (ip, port) = (at.ip().to_string(), at.port().to_string());
        // What it costs to start counts here, not how fast it becomes.
        let quick = [
            "-Djava.net.preferIPv4Stack=true",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xmx64m",
        ];
        let source = source.to_string_lossy();
        let args = [&quick[..], &["-cp", &libraries, &source, &ip, &port]].concat();
        let log = Path::new(&*source).with_extension("log");
        let mut child = Child::spawn("jetty", "java", &args, &[], &log)?;
        child.wait_listening(&[at])?;
        Ok(Self { _child: child })
    }
}
