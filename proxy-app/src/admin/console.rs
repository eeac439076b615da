//! The console: the page with which an administrator's browser uses the admin API.
//!
//! These are only its files, which contain nothing of this node: the page gets its content from the API, as any other
//! client does. No script, style or picture comes from elsewhere, and what is on the page cannot become one.

use axum::extract::Path;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::admin::api_error::ApiError;

/// Where the files of the page are.
const FOLDER: &str = "/console/";

/// Only what comes from here runs, and text never becomes markup: `require-trusted-types-for` has the browser refuse
/// every `innerHTML` and its kin.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page, by its name in the folder.
macro_rules! files {
    ($($name:literal $kind:expr,)*) => {
        [$(($name, $kind, include_str!(concat!("console/", $name)))),*]
    };
}

/// The files, with what they are.
const FILES: [(&str, &str, &str); 15] = files! {
    "index.html" HTML,
    "style.css" "text/css; charset=utf-8",
    "icon.svg" "image/svg+xml",
    "main.js" SCRIPT,
    "api.js" SCRIPT,
    "dom.js" SCRIPT,
    "overview.js" SCRIPT,
    "sessions.js" SCRIPT,
    "logins.js" SCRIPT,
    "throttle.js" SCRIPT,
    "routes.js" SCRIPT,
    "upstreams.js" SCRIPT,
    "domains.js" SCRIPT,
    "live.js" SCRIPT,
    "certificates.js" SCRIPT,
};

/// Whether this is a path of the page, which needs no token.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || path.starts_with(FOLDER)
}

/// The page.
pub(crate) async fn page() -> Response {
    file("index.html")
}

/// One of its files.
pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    file(&name)
}

fn file(name: &str) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => (HEADERS, [(header::CONTENT_TYPE, *kind)], *text).into_response(),
        None => ApiError::new(StatusCode::NOT_FOUND, "there is no such path").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text between quotes.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('"').chain(text.split('\'')).skip(1)
    }

    #[test]
    fn everything_that_a_file_asks_for_is_here() {
        let has = |name: &str| FILES.iter().any(|(known, ..)| *known == name);
        for (name, _, text) in FILES {
            let absolute = quoted(text).filter_map(|quoted| quoted.strip_prefix(FOLDER));
            let relative = quoted(text).filter_map(|quoted| quoted.strip_prefix("./"));
            for asked in absolute.chain(relative) {
                assert!(has(asked), "{name} asks for {asked}");
            }
        }
        assert!(is_page("/") && is_page("/console/main.js") && !is_page("/v1/status") && !is_page("/console"));
    }

    /// The policy would stop it in a browser; here it is found out earlier.
    #[test]
    fn nothing_comes_from_elsewhere_and_no_text_becomes_markup() {
        let forbidden = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "localStorage",
            "document.cookie",
            "https://",
            "style=",
            "onclick=",
        ];
        for (name, _, text) in FILES {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in forbidden.iter().chain(&["http://"]) {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        let page = FILES[0].2;
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("<script type=\"module\" src=\"/console/main.js\"></script>"));
    }
}
