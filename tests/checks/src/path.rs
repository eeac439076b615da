//! The form of paths in which locations compare them: a fixed point without dots and empty segments, and what is sent
//! on in place of a prefix leads to the same place.

use http::Uri;
use proxy_app::locations::path::{normalized, replaced};

pub(crate) fn check(bytes: &[u8]) {
    // As the engine reads the target of a request.
    let Ok(uri) = Uri::try_from(bytes) else { return };
    let Some(path) = normalized(uri.path()) else { return };
    check_form(&path);
    assert_eq!(
        normalized(&as_sent(&path)).as_deref(),
        Some(&*path),
        "not a fixed point"
    );
    for (matched, _) in path.match_indices('/') {
        check_replaced(&uri, &path, matched + 1);
    }
}

fn check_form(path: &str) {
    let segments = path.strip_prefix('/').expect("a slash in front");
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        assert!(
            !segment.is_empty() || segments.peek().is_none(),
            "an empty segment: {path:?}"
        );
        let name = segment.split(';').next();
        assert!(!matches!(name, Some("." | "..")), "dots: {path:?}");
    }
    assert!(!path.contains(['\0', '\r', '\n']), "{path:?}");
}

/// A decoded path as a request could bring it.
fn as_sent(path: &str) -> String {
    path.replace('%', "%25")
}

/// The prefix up to there becomes another one.
fn check_replaced(uri: &Uri, path: &str, matched: usize) {
    let target = replaced(uri, path, matched, "/new/");
    let sent: Uri = target.parse().unwrap_or_else(|error| panic!("{target:?}: {error}"));
    let expected = format!("/new/{}", &path[matched..]);
    assert_eq!(normalized(sent.path()).as_deref(), Some(&*expected), "{target:?}");
    assert_eq!(sent.query(), uri.query(), "{target:?}");
}
