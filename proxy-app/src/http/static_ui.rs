//! Files below a folder: the pages of the web clients.
//!
//! tower-http finds, opens and reads them, off the threads that serve requests, and knows conditional requests and
//! ranges. This file says what of the disk may be read: nothing outside the folder, no names that begin with a dot, no
//! list of a folder. Symbolic links are followed as long as they end inside, as Carbonio's `current` does.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_proxy::Session;
use tower_http::services::ServeDir;
use tower_http::services::fs::{Backend, DefaultServeDirFallback};

use crate::http::compression::Compressing;
use crate::http::static_ui::file::{FileBody, OpenFile};
use crate::http::{answers, compression};

mod file;
mod range;

/// Characters of a path that are not encoded.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Endings of files of bytes; a file with any other unknown ending counts as text, as in nginx.
const BINARY: [&str; 11] = [
    "bin", "exe", "dll", "deb", "rpm", "dmg", "iso", "img", "msi", "msp", "dat",
];

/// Linux: symbolic links form a loop. The standard library has no stable name for it yet.
const ELOOP: i32 = 40;

/// How a tree is served.
#[derive(Debug, Clone, Default)]
pub(crate) struct TreeOptions {
    /// This file of the folder is served for every path: a program that runs in the browser reads the path itself.
    pub file: Option<PathBuf>,
    /// The file that is served for a folder; `None`: a folder is not found.
    pub index: Option<String>,
    /// The Cache-Control of its answers.
    pub cache_control: Option<String>,
    /// Names that begin with a dot are served too, as `.well-known` needs it.
    pub dot_files: bool,
    /// Folders into which symbolic links may lead, beside the tree's own.
    pub also: Vec<PathBuf>,
}

/// A folder whose files are served.
pub(crate) struct Tree {
    root: PathBuf,
    /// It, and the folders into which its links may lead.
    roots: Arc<Vec<PathBuf>>,
    options: TreeOptions,
    cache_control: Option<HeaderValue>,
}

/// An answer, with what of a file is its body.
type FileResponse = Response<Option<FileBody>>;

impl Tree {
    /// The files below `root`, which need not exist yet.
    pub(crate) fn new(root: impl Into<PathBuf>, options: TreeOptions) -> Self {
        let root = root.into();
        let mut roots = vec![root.clone()];
        roots.extend(options.also.iter().cloned());
        let cache_control = options.cache_control.as_deref();
        Self {
            root,
            roots: Arc::new(roots),
            cache_control: cache_control.and_then(|value| HeaderValue::from_str(value).ok()),
            options,
        }
    }

    /// tower-http for one request, whose file this backend keeps.
    fn files(&self, disk: InsideRoot) -> ServeDir<DefaultServeDirFallback, InsideRoot> {
        ServeDir::with_backend(&self.root, disk)
            .append_index_html_on_directories(self.options.index.is_some())
            // Several ranges at once are answered with the whole file.
            .ignore_multi_range_requests(true)
            .precompressed_br()
            .precompressed_gzip()
            .precompressed_zstd()
    }

    /// Answers a request with the file at this path below the root. `path` is decoded; a file without a compressed copy
    /// is compressed as `compressing` says; `finish` may add to the head of the answer; `portion` says how much is read next.
    ///
    /// # Errors
    /// 404 if there is no such file, and 500 if it cannot be read, as [`ErrorType::HTTPStatus`], with nothing sent.
    /// Other errors: the connection failed.
    pub(crate) async fn serve(
        &self,
        session: &mut Session,
        path: &str,
        compressing: &Compressing<'_>,
        finish: impl FnOnce(&mut ResponseHeader),
        mut portion: impl FnMut() -> usize,
    ) -> Result<()> {
        answers::hear_out(session).await;
        let request = session.req_header();
        let (method, headers, query) = (request.method.clone(), request.headers.clone(), request.uri.query());
        let (head, body) = match self.answer(&method, &headers, path, query).await {
            Ok(Some(answer)) => answer.into_parts(),
            Ok(None) => return Error::e_explain(ErrorType::HTTPStatus(404), "no such file"),
            Err(error) => {
                log::warn!("static file {path:?}: {error}");
                return Error::e_explain(ErrorType::HTTPStatus(500), "a file cannot be read");
            }
        };
        let mut response = ResponseHeader::build(head.status, Some(head.headers.len() + 4))?;
        for (name, value) in &head.headers {
            response.append_header(name.clone(), value.clone())?;
        }
        if !head.headers.contains_key(header::CONTENT_LENGTH) && head.status != StatusCode::NOT_MODIFIED {
            response.insert_header(header::CONTENT_LENGTH, "0")?;
        }
        finish(&mut response);
        compression::begin(session, &mut response, compressing);
        let head_only = method == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
        answers::write_head(session, response, head_only).await?;
        if head_only {
            return Ok(());
        }
        if let Some(mut body) = body {
            let mut next = async || {
                body.next(portion())
                    .await
                    .or_err(ErrorType::FileReadError, "a static file")
            };
            while let Some(chunk) = next().await? {
                answers::write_body(session, Some(chunk), false).await?;
            }
        }
        answers::write_body(session, None, true).await
    }

    /// The answer as read from the disk; `None`: there is no such file.
    async fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
        path: &str,
        query: Option<&str>,
    ) -> io::Result<Option<FileResponse>> {
        let Some(path) = self.inside(path) else {
            return Ok(None);
        };
        let mut headers = headers.clone();
        if headers.contains_key(header::IF_RANGE) && !self.is_still(&headers, &path).await? {
            headers.remove(header::RANGE);
        }
        range::settle(method, &mut headers);
        let Some(mut answer) = self.ask(method, &headers, &path).await? else {
            return Ok(None);
        };
        if range::instead(&mut headers, answer.status(), answer.headers()) {
            match self.ask(method, &headers, &path).await? {
                Some(now) => answer = now,
                None => return Ok(None),
            }
        }
        let kind = answer.headers().get(header::CONTENT_TYPE);
        if let Some(kind) = kind.and_then(|kind| better_kind(&path, kind)) {
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        if answer.headers().contains_key(header::LOCATION) {
            *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
            answer.headers_mut().insert(header::LOCATION, below(&path, query));
        }
        if answer.status() == StatusCode::NOT_MODIFIED {
            // What the 200 would have had (RFC 9110 §15.4.5): tower-http has copies in several codings in view.
            let coding = HeaderValue::from_static("accept-encoding");
            answer.headers_mut().insert(header::VARY, coding);
        }
        let good = answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED;
        if let Some(value) = self.cache_control.clone().filter(|_| good) {
            answer.headers_mut().insert(header::CACHE_CONTROL, value);
        }
        Ok(Some(answer))
    }

    async fn ask(&self, method: &Method, headers: &HeaderMap, path: &str) -> io::Result<Option<FileResponse>> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        *request.headers_mut() = headers.clone();
        let disk = InsideRoot::new(self.roots.clone());
        match self.files(disk.clone()).try_call(request).await {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => Ok(None),
            Ok(answer) => {
                let length = answer.headers().get(header::CONTENT_LENGTH);
                let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
                let file = disk.opened.lock().take().filter(|_| answer.status().is_success());
                Ok(Some(answer.map(|_| Some(file?.body(length?)))))
            }
            Err(error) if is_nothing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A path for tower-http: encoded, and only if it may be read.
    fn inside(&self, path: &str) -> Option<String> {
        if let Some(file) = &self.options.file {
            return Some(encoded(file.to_str()?.trim_start_matches('/')));
        }
        let hidden = |name: &str| name.starts_with('.') && !self.options.dot_files;
        let names = path.split('/').filter(|name| !name.is_empty());
        if names.clone().any(|name| matches!(name, "." | "..") || hidden(name)) || path.contains('\0') {
            return None;
        }
        let index = self
            .options
            .index
            .as_deref()
            .filter(|_| path.is_empty() || path.ends_with('/'));
        let path = path.trim_start_matches('/');
        Some(encoded(&format!("{path}{}", index.unwrap_or_default())))
    }

    /// Whether the file is still what `If-Range` names (RFC 9110 §13.1.5): the same strong tag, or the same date.
    async fn is_still(&self, headers: &HeaderMap, path: &str) -> io::Result<bool> {
        let mut only_encoding = HeaderMap::new();
        if let Some(encoding) = headers.get(header::ACCEPT_ENCODING) {
            only_encoding.insert(header::ACCEPT_ENCODING, encoding.clone());
        }
        let Some(now) = self.ask(&Method::HEAD, &only_encoding, path).await? else {
            return Ok(false);
        };
        let known = headers.get(header::IF_RANGE);
        let same = |name| known.is_some() && now.headers().get(name) == known;
        let weak = known.is_some_and(|known| known.as_bytes().starts_with(b"W/"));
        Ok(!weak && (same(header::ETAG) || same(header::LAST_MODIFIED)))
    }
}

fn encoded(path: &str) -> String {
    format!("/{}", utf8_percent_encode(path, PLAIN))
}

/// The address of a folder that was requested without its slash, relative to it: it does not depend on the outer path.
fn below(path: &str, query: Option<&str>) -> HeaderValue {
    let name = path.rsplit('/').next().unwrap_or_default();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    HeaderValue::from_str(&format!("./{name}/{query}")).unwrap_or(HeaderValue::from_static("./"))
}

/// A content type where tower-http's is not that of Carbonio's proxy (HTTP §7.2).
fn better_kind(path: &str, kind: &HeaderValue) -> Option<HeaderValue> {
    let ending = path.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    let ending = ending.map_or(String::new(), |(_, ending)| ending.to_ascii_lowercase());
    match ending.as_str() {
        "mjs" => Some(HeaderValue::from_static("application/javascript")),
        _ if kind == "application/octet-stream" && !BINARY.contains(&ending.as_str()) => {
            Some(HeaderValue::from_static("text/plain"))
        }
        _ => None,
    }
}

/// Errors that mean that there is nothing to serve.
fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    let nothing = [NotFound, PermissionDenied, NotADirectory, InvalidFilename, InvalidInput];
    nothing.contains(&error.kind()) || error.raw_os_error() == Some(ELOOP)
}

/// The disk, as far as it lies within these folders, and the file of it that was opened last.
#[derive(Clone)]
struct InsideRoot {
    roots: Arc<Vec<PathBuf>>,
    opened: Arc<Mutex<Option<OpenFile>>>,
}

impl InsideRoot {
    fn new(roots: Arc<Vec<PathBuf>>) -> Self {
        Self {
            roots,
            opened: Arc::default(),
        }
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Backend for InsideRoot {
    type File = OpenFile;
    type Metadata = std::fs::Metadata;
    type OpenFuture = BoxFuture<OpenFile>;
    type MetadataFuture = BoxFuture<std::fs::Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let Self { roots, opened } = self.clone();
        Box::pin(async move {
            let (path, found) = real(path, roots).await?;
            if !found.is_file() {
                // Opening a pipe would wait for a writer.
                return Err(io::ErrorKind::NotFound.into());
            }
            let open = move || std::fs::File::open(path);
            let file = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
            let file = OpenFile::new(file);
            *opened.lock() = Some(file.clone());
            Ok(file)
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let roots = self.roots.clone();
        Box::pin(async move { Ok(real(path, roots).await?.1) })
    }
}

/// Where a path leads when all symbolic links are followed, if that is within one of these folders.
async fn real(path: PathBuf, roots: Arc<Vec<PathBuf>>) -> io::Result<(PathBuf, std::fs::Metadata)> {
    let look = move || {
        let path = path.canonicalize()?;
        let within = |root: &PathBuf| root.canonicalize().is_ok_and(|root| Path::starts_with(&path, root));
        if !roots.iter().any(within) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let found = path.metadata()?;
        Ok((path, found))
    };
    tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder as Carbonio lays it out, and something beside it.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new() -> Self {
            let disk = Self(tempfile::tempdir().unwrap());
            let web = disk.web();
            fs::create_dir_all(web.join("shell/abc/.git")).unwrap();
            fs::create_dir(web.join("empty")).unwrap();
            for (name, text) in [
                ("shell/abc/index.html", "<p>shell"),
                ("shell/abc/app.js", "let a = 1;"),
                ("shell/abc/app.js.br", "(brotli)"),
                ("shell/abc/app.js.gz", "(gzip)"),
                ("shell/abc/app.js.zst", "(zstandard)"),
                ("shell/abc/mod.mjs", "export {};"),
                ("shell/abc/LICENSE", "free"),
                ("shell/abc/empty.txt", ""),
                ("shell/abc/a.unheard-of", "text"),
                ("shell/abc/a.bin", "\u{1}"),
                ("shell/abc/a b%?.txt", "odd"),
                ("shell/abc/.git/config", "secret"),
                ("../outside.txt", "secret"),
                ("secret.js", "secret"),
            ] {
                fs::write(web.join(name), text).unwrap();
            }
            symlink("abc", web.join("shell/current")).unwrap();
            symlink("../outside.txt", web.join("out.txt")).unwrap();
            symlink("..", web.join("up")).unwrap();
            symlink(disk.0.path().join("outside.txt"), web.join("secret.js.gz")).unwrap();
            symlink("loop", web.join("loop")).unwrap();
            nix_fifo(&web.join("pipe"));
            disk
        }

        fn web(&self) -> PathBuf {
            self.0.path().join("web")
        }

        fn tree(&self) -> Tree {
            self.tree_with(TreeOptions {
                index: Some("index.html".to_owned()),
                cache_control: Some("no-cache".to_owned()),
                ..TreeOptions::default()
            })
        }

        fn tree_with(&self, options: TreeOptions) -> Tree {
            Tree::new(self.web(), options)
        }
    }

    fn nix_fifo(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    struct Got {
        status: u16,
        headers: HeaderMap,
        body: String,
    }

    impl Got {
        fn header(&self, name: &str) -> &str {
            self.headers.get(name).map_or("", |value| value.to_str().unwrap())
        }
    }

    async fn ask(tree: &Tree, method: Method, path: &str, headers: &[(header::HeaderName, &str)]) -> Got {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        let answer = tree
            .answer(&method, &headers.collect(), path, Some("q=1"))
            .await
            .unwrap();
        let Some(answer) = answer else {
            return Got {
                status: 404,
                headers: HeaderMap::new(),
                body: String::new(),
            };
        };
        let (head, body) = answer.into_parts();
        let mut got = Vec::new();
        if let Some(mut body) = body {
            while let Some(bytes) = body.next(3).await.unwrap() {
                got.extend_from_slice(&bytes);
            }
        }
        Got {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(got).unwrap(),
        }
    }

    async fn get(tree: &Tree, path: &str, headers: &[(header::HeaderName, &str)]) -> Got {
        ask(tree, Method::GET, path, headers).await
    }

    #[tokio::test]
    async fn files_are_found_and_named() {
        let disk = Disk::new();
        let tree = disk.tree();
        for (path, kind, body) in [
            ("/shell/abc/app.js", "text/javascript", "let a = 1;"),
            ("/shell/current/mod.mjs", "application/javascript", "export {};"),
            ("/shell/current/", "text/html", "<p>shell"),
            ("shell/abc/LICENSE", "text/plain", "free"),
            ("/shell/abc/a.unheard-of", "text/plain", "text"),
            ("/shell/abc/a.bin", "application/octet-stream", "\u{1}"),
            ("/shell/abc/a b%?.txt", "text/plain", "odd"),
        ] {
            let got = get(&tree, path, &[]).await;
            assert_eq!(
                (got.status, got.header("content-type"), &*got.body),
                (200, kind, body),
                "{path}"
            );
            assert_eq!(got.header("cache-control"), "no-cache");
            assert_ne!(got.header("etag"), "", "{path}");
            assert_ne!(got.header("last-modified"), "", "{path}");
            let head = ask(&tree, Method::HEAD, path, &[]).await;
            assert_eq!(
                (head.status, head.header("content-length")),
                (200, &*body.len().to_string())
            );
            assert_eq!(head.body, "");
        }
    }

    #[tokio::test]
    async fn nothing_else_is() {
        let disk = Disk::new();
        let tree = disk.tree();
        for path in [
            "/none",
            "/shell/abc/app.js/",
            "/shell/abc/app.js/x",
            "/../outside.txt",
            "/shell/../../outside.txt",
            "/%2e%2e/outside.txt",
            "/shell/abc/.git/config",
            "/./shell/abc/app.js",
            "/out.txt",
            "/up/outside.txt",
            "/up/",
            "/up",
            "/loop",
            "/pipe",
            "/empty/",
            "/shell/abc/app.js\0",
            "/etc/passwd",
        ] {
            assert_eq!(get(&tree, path, &[]).await.status, 404, "{path}");
        }
        let packed = [(header::ACCEPT_ENCODING, "gzip")];
        assert_eq!(get(&tree, "/secret.js", &packed).await.body, "secret");
        assert_eq!(get(&tree, "/secret.js", &packed).await.header("content-encoding"), "");
        let plain = disk.tree_with(TreeOptions::default());
        assert_eq!(get(&plain, "/shell/abc/", &[]).await.status, 404, "no index, no list");
        let dots = disk.tree_with(TreeOptions {
            dot_files: true,
            also: vec![disk.0.path().to_owned()],
            ..TreeOptions::default()
        });
        assert_eq!(get(&dots, "/shell/abc/.git/config", &[]).await.status, 200);
        assert_eq!(get(&dots, "/out.txt", &[]).await.status, 200);
        assert_eq!(get(&dots, "/../outside.txt", &[]).await.status, 404);
    }

    #[tokio::test]
    async fn a_folder_without_its_slash_is_sent_there() {
        let disk = Disk::new();
        let got = get(&disk.tree(), "/shell/current", &[]).await;
        assert_eq!((got.status, got.header("location")), (301, "./current/?q=1"));
    }

    #[tokio::test]
    async fn one_file_for_all_paths() {
        let disk = Disk::new();
        let tree = disk.tree_with(TreeOptions {
            file: Some("shell/current/index.html".into()),
            ..TreeOptions::default()
        });
        for path in ["", "/", "/mails/folder/2", "/../x", "/a.js", "/.x"] {
            let got = get(&tree, path, &[]).await;
            assert_eq!((got.status, &*got.body), (200, "<p>shell"), "{path}");
            assert_eq!(got.header("content-type"), "text/html");
        }
        assert_eq!(ask(&tree, Method::POST, "/", &[]).await.status, 405);
        assert_eq!(ask(&tree, Method::POST, "/", &[]).await.header("allow"), "GET,HEAD");
    }

    #[tokio::test]
    async fn what_is_packed_already_is_sent_so() {
        let disk = Disk::new();
        let tree = disk.tree();
        for (accept, encoding, body) in [
            ("br, gzip", "br", "(brotli)"),
            ("gzip", "gzip", "(gzip)"),
            ("zstd;q=1, gzip;q=0.5", "zstd", "(zstandard)"),
            ("br;q=0, gzip", "gzip", "(gzip)"),
            ("compress", "", "let a = 1;"),
        ] {
            let got = get(&tree, "/shell/abc/app.js", &[(header::ACCEPT_ENCODING, accept)]).await;
            assert_eq!(
                (got.header("content-encoding"), &*got.body),
                (encoding, body),
                "{accept}"
            );
            assert_eq!(got.header("vary"), "accept-encoding");
            assert_eq!(got.header("content-type"), "text/javascript");
        }
    }

    #[tokio::test]
    async fn conditions_and_ranges() {
        let disk = Disk::new();
        let tree = disk.tree();
        let path = "/shell/abc/app.js";
        let first = get(&tree, path, &[]).await;
        let (tag, date) = (first.header("etag"), first.header("last-modified"));
        let (old, range) = ("Thu, 01 Jan 1970 00:00:10 GMT", (header::RANGE, "bytes=4-6"));
        for (headers, status, body) in [
            (vec![(header::IF_NONE_MATCH, tag)], 304, ""),
            (vec![(header::IF_NONE_MATCH, "\"other\"")], 200, "let a = 1;"),
            (vec![(header::IF_MODIFIED_SINCE, date)], 304, ""),
            (vec![(header::IF_MODIFIED_SINCE, old)], 200, "let a = 1;"),
            (vec![(header::IF_MATCH, "\"other\"")], 412, ""),
            (vec![range.clone()], 206, "a ="),
            (vec![range.clone(), (header::IF_RANGE, tag)], 206, "a ="),
            (vec![range.clone(), (header::IF_RANGE, date)], 206, "a ="),
            (vec![range.clone(), (header::IF_RANGE, "\"other\"")], 200, "let a = 1;"),
            (vec![range.clone(), (header::IF_RANGE, old)], 200, "let a = 1;"),
            (vec![(header::RANGE, "bytes=100-")], 416, ""),
            (vec![(header::RANGE, "bytes=4-99999999999999999999")], 206, "a = 1;"),
            (vec![(header::RANGE, "bytes=99999999999999999999-")], 416, ""),
            (vec![(header::RANGE, "bytes=-100")], 206, "let a = 1;"),
            (vec![(header::RANGE, "bytes=-99999999999999999999")], 206, "let a = 1;"),
            (vec![(header::RANGE, "bytes=-0")], 416, ""),
            (vec![(header::RANGE, "BYTES=04-6")], 206, "a ="),
            (vec![(header::RANGE, "items=4-6")], 200, "let a = 1;"),
            (vec![(header::RANGE, "bytes=6-4")], 200, "let a = 1;"),
            (vec![(header::RANGE, "bytes")], 200, "let a = 1;"),
            (vec![(header::RANGE, "bytes=-3")], 206, " 1;"),
            (vec![(header::RANGE, "bytes=0-0,4-4")], 200, "let a = 1;"),
        ] {
            let got = get(&tree, path, &headers).await;
            assert_eq!((got.status, &*got.body), (status, body), "{headers:?}");
            if status == 304 {
                assert_eq!(got.header("etag"), tag, "{headers:?}");
                assert_eq!(got.header("vary"), first.header("vary"), "{headers:?}");
                assert_eq!(got.header("cache-control"), "no-cache");
            }
        }
        for wanted in ["bytes=0-", "bytes=0-4", "bytes=5-", "bytes=-5"] {
            let got = get(&tree, "/shell/abc/empty.txt", &[(header::RANGE, wanted)]).await;
            assert_eq!(
                (got.status, got.header("content-range"), &*got.body),
                (200, "", ""),
                "{wanted}"
            );
        }
        let head = ask(&tree, Method::HEAD, path, std::slice::from_ref(&range)).await;
        assert_eq!((head.status, head.header("content-length")), (200, "10"));
        let got = get(&tree, path, &[range]).await;
        assert_eq!(got.header("content-range"), "bytes 4-6/10");
        assert_eq!(got.header("content-length"), "3");
    }
}
