//! A headless Chromium, driven over WebDriver: what a user with a browser would see and do.
//!
//! It resolves the names that it is given to loopback addresses, and accepts every certificate: whether they are
//! valid is tested with OpenSSL and curl.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::child::Child;
use crate::{Stage, until};

/// How long a page may take to do what is expected of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the driver may take for one answer.
const ANSWER: Duration = Duration::from_secs(90);

/// A running browser with one window. It ends when dropped.
pub struct Browser {
    address: SocketAddrV4,
    session: String,
    _driver: Child,
}

impl Browser {
    /// Starts one for which each of these names is at its address.
    pub fn start(stage: &Stage, names: &[(&str, SocketAddrV4)]) -> Result<Self> {
        let dir = stage.dir("browser")?;
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, stage.port()?);
        let port = format!("--port={}", address.port());
        let mut driver = Child::spawn("chromedriver", "chromedriver", &[&port], &[], &dir.join("driver.log"))?;
        driver.wait_listening(&[address])?;
        let mut browser = Self {
            address,
            session: String::new(),
            _driver: driver,
        };
        let rules: Vec<String> = names.iter().map(|(name, at)| format!("MAP {name} {at}")).collect();
        let args = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--window-size=1000,700".to_owned(),
            format!("--host-resolver-rules={}", rules.join(",")),
            format!("--user-data-dir={}", dir.join("profile").display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": args},
        }}});
        let session = browser.call("POST", "/session", Some(&wanted))?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    /// Loads a page, and waits until it has loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.ask("POST", "url", Some(&json!({"url": url}))).map(drop)
    }

    /// Where it is now.
    pub fn url(&self) -> Result<String> {
        let url = self.ask("GET", "url", None)?;
        Ok(url.as_str().context("no address")?.to_owned())
    }

    /// What this piece of JavaScript returns.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.ask("POST", "execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// Types into the field that this CSS selector finds.
    pub fn type_into(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.element(selector)?;
        let path = format!("element/{element}/value");
        self.ask("POST", &path, Some(&json!({"text": text}))).map(drop)
    }

    /// Clicks what this CSS selector finds.
    pub fn click(&self, selector: &str) -> Result<()> {
        let element = self.element(selector)?;
        let path = format!("element/{element}/click");
        self.ask("POST", &path, Some(&json!({}))).map(drop)
    }

    /// Waits until this expression is true, for no longer than a page may take.
    pub fn must(&self, expression: &str) -> Result<()> {
        self.must_within(PATIENCE, expression)
    }

    /// The same with a deadline of its own.
    pub fn must_within(&self, deadline: Duration, expression: &str) -> Result<()> {
        let script = format!("return Boolean({expression})");
        let came = until(expression, deadline, || {
            Ok((self.run(&script)? == json!(true)).then_some(()))
        });
        came.with_context(|| format!("at {:?}: {:?}", self.url(), self.text()))
    }

    /// All text of the page.
    pub fn text(&self) -> Result<String> {
        let text = self.run("return document.body.innerText")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Makes what is to be seen of a page this large, as on another screen.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.develop("Emulation.setDeviceMetricsOverride", &size)
    }

    /// Sets the colour scheme that pages see, light or dark.
    pub fn prefer(&self, scheme: &str) -> Result<()> {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.develop("Emulation.setEmulatedMedia", &feature)
    }

    /// A command of Chromium's own.
    fn develop(&self, command: &str, parameters: &Value) -> Result<()> {
        let command = json!({"cmd": command, "params": parameters});
        self.ask("POST", "goog/cdp/execute", Some(&command)).map(drop)
    }

    /// Draws what is to be seen into a PNG file.
    pub fn screenshot(&self, file: &Path) -> Result<()> {
        let picture = self.ask("GET", "screenshot", None)?;
        let picture = openssl::base64::decode_block(picture.as_str().context("no picture")?)?;
        Ok(std::fs::write(file, picture)?)
    }

    fn element(&self, selector: &str) -> Result<String> {
        let using = json!({"using": "css selector", "value": selector});
        let found = self.ask("POST", "element", Some(&using))?;
        let id = found.as_object().and_then(|found| found.values().next());
        Ok(id.and_then(Value::as_str).context("no element")?.to_owned())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.call(method, &format!("/session/{}/{path}", self.session), body)
    }

    /// One command of WebDriver.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(ANSWER))?;
        write!(
            tcp,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let answer = answer(&mut tcp).with_context(|| format!("{method} {path}"))?;
        let value = answer.get("value").cloned().unwrap_or_default();
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!(
                "{method} {path}: {error}: {}",
                value["message"].as_str().unwrap_or_default()
            );
        }
        Ok(value)
    }
}

/// The JSON of an answer, which ends where its length says: the driver does not always close.
fn answer(tcp: &mut TcpStream) -> Result<Value> {
    let mut bytes = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        if let Some(body) = body(&bytes)? {
            return Ok(serde_json::from_slice(body)?);
        }
        let count = tcp.read(&mut part)?;
        ensure!(count > 0, "the driver left: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&part[..count]);
    }
}

fn body(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .context("no length")?;
    let length: usize = length.trim().parse()?;
    Ok(bytes[end + 4..].get(..length))
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _gone = self.call("DELETE", &format!("/session/{}", self.session), None);
    }
}
