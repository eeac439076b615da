//! Web logins for the audit log: the name is read from the request, and the outcome from the answer.
//!
//! Nothing is delayed here. The mailbox server decides about the password; of it only a mark is made, by which the
//! throttle tells whether it is the same again. A login that a server may be able to read and we are not is an error:
//! it would pass unjudged and unrecorded.

use std::fmt;
use std::marker::PhantomData;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Uri};
use mail_directory::Secret;
use mail_proxy::audit::Outcome;
use mail_proxy::throttle::{PasswordMark, PasswordMarker};
use quick_xml::XmlVersion;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::http::account;
use crate::http::login_words::LoginWords;

/// How much of a request body is kept: a login has under 1 KiB, and a batch of them may be somewhat longer.
const BODY_MAX: usize = 64 * 1024;

/// The most pieces of a body that are kept. A login comes in one or two packets; thousands of pieces of one byte would
/// cost fifty times their size.
const PIECES_MAX: usize = 256;

/// How deep XML may nest. A login is four deep, a long calendar request twelve.
const DEPTH_MAX: usize = 64;

/// The kind of login: it decides where the name stands and what the answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginForm {
    /// `Authorization: Basic`, on any path.
    Basic,
    /// SOAP `AuthRequest`, as XML or as JSON.
    Soap,
    /// SOAP `AuthRequest` inside a `BatchRequest`. Never returned by [`is_login_path`]: only the body shows it.
    Batch,
    /// JSON of the authentication service.
    Json,
}

/// A login attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoginAttempt {
    /// `BASIC`, `SOAP` (also when written as JSON) or `JSON`, for the audit record.
    pub mechanism: &'static str,
    /// The user as typed.
    pub user: String,
    /// What [`outcome`] needs to know. It comes from the body, and may differ from what the path says.
    pub form: LoginForm,
    /// What tells its password from others, if it has one.
    pub mark: Option<PasswordMark>,
    /// How many logins there are. Only the first one is read: no program but one that guesses sends more.
    pub logins: usize,
    /// Whether a good answer says that the password is right. Anybody gets one to reading a public folder, and to
    /// asking for options; and a token may be taken in the place of a password.
    pub proves: bool,
}

/// A login that cannot be read, while a server may be able to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnreadableLogin {
    /// As in [`LoginAttempt`].
    pub mechanism: &'static str,
    /// What its client is answered.
    pub status: u16,
    /// Why it cannot be read.
    pub why: &'static str,
}

impl LoginForm {
    /// For the audit record.
    fn mechanism(self) -> &'static str {
        match self {
            Self::Basic => "BASIC",
            Self::Soap | Self::Batch => "SOAP",
            Self::Json => "JSON",
        }
    }

    /// What stands in every body that may hold a login. Requests that set another password or a second factor ask for
    /// the old password, and need no session.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Basic => &[],
            Self::Soap | Self::Batch => &["AuthRequest", "ChangePasswordRequest", "EnableTwoFactorAuthRequest"],
            Self::Json => &["password"],
        }
    }

    fn unreadable(self, (status, why): (u16, &'static str)) -> UnreadableLogin {
        let mechanism = self.mechanism();
        UnreadableLogin { mechanism, status, why }
    }
}

impl LoginAttempt {
    fn new(form: LoginForm, typed: &str, mark: Option<PasswordMark>) -> Option<Self> {
        account::user(typed.trim()).map(|user| Self {
            mechanism: form.mechanism(),
            user,
            form,
            mark,
            logins: 1,
            proves: true,
        })
    }

    /// What the answer to it means. `None`: nothing.
    pub(crate) fn outcome(&self, status: u16, sets_auth_cookie: bool) -> Option<Outcome> {
        match outcome(status, sets_auth_cookie, self.form) {
            Some(Outcome::Ok) if !self.proves => Some(Outcome::NotRefused),
            outcome => outcome,
        }
    }
}

/// The attempt in an `Authorization: Basic` header, on a path where servers ask for it. Elsewhere the header says
/// nothing: a static file is sent to every client, and its 200 would call any password right.
///
/// # Errors
/// There is one that cannot be read.
pub(crate) fn basic(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Option<LoginAttempt>, UnreadableLogin> {
    if !headers.contains_key(AUTHORIZATION) || !asks_for_basic(uri.path()) {
        return Ok(None);
    }
    let unreadable = |why| LoginForm::Basic.unreadable((400, why));
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(unreadable("more than one Authorization"));
    }
    let Some((user, mark)) = account::basic_login(headers) else {
        return Ok(None);
    };
    let attempt = LoginAttempt::new(LoginForm::Basic, &user, Some(mark));
    let attempt = attempt.ok_or_else(|| unreadable("no name that can be logged in with"))?;
    Ok(Some(LoginAttempt {
        proves: !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
        ..attempt
    }))
}

/// ActiveSync, EWS, autodiscover, DAV and REST (HTTP §2.3, P16 to P22).
fn asks_for_basic(path: &str) -> bool {
    let Some(path) = account::without_parameters(path) else {
        return false;
    };
    let Some(mut segments) = account::segments(&path) else {
        return false;
    };
    segments.retain(|segment| !segment.is_empty());
    let (first, second) = (segments.first().copied(), segments.get(1).copied());
    match first.map(str::to_ascii_lowercase).as_deref() {
        Some("microsoft-server-activesync" | "ews" | "autodiscover" | "dav" | "principals" | "home" | "user") => true,
        Some("service") => matches!(second, Some("home" | "user" | "dav")),
        _ => false,
    }
}

/// Whether a body posted to this path may hold a login: all of `/service/soap` and `/service/admin/soap`, and
/// `login` anywhere below `/zx/auth/`. `path` as in the request, not decoded.
///
/// All SOAP paths count, since the mailbox server goes by the body alone: an `AuthRequest` works when posted to
/// `/service/soap/NoOpRequest`, and a client that guesses passwords would do just that.
pub(crate) fn is_login_path(path: &str) -> Option<LoginForm> {
    let path = account::without_parameters(path)?;
    // Nearly all others are recognized by this alone.
    let mut parts = path.as_bytes().windows(4);
    if !parts.any(|part| matches!(part, b"soap" | b"logi")) {
        return None;
    }
    let mut segments = account::segments(&path)?;
    segments.retain(|segment| !segment.is_empty());
    match segments.as_slice() {
        ["service", "soap", ..] | ["service", "admin", "soap", ..] => Some(LoginForm::Soap),
        ["zx", "auth", .., "login"] => Some(LoginForm::Json),
        _ => None,
    }
}

/// What the answer to an attempt means. `None`: it says nothing about name and password.
///
/// - A wrong password is a SOAP fault, which HTTP carries with status 500.
/// - A SOAP or JSON answer of 200 is [`Outcome::Ok`] even without a cookie: with a second factor the cookie only comes
///   with the next request, but the password was right. Only a batch needs the cookie, as its 200 may wrap faults, and
///   only clients that guess passwords batch logins.
/// - Basic that is not answered with 401 has not been refused: right credentials get 403 at a folder that is not shared
///   with them, and 404 at one that is not there.
fn outcome(status: u16, sets_auth_cookie: bool, form: LoginForm) -> Option<Outcome> {
    match (form, status) {
        (_, 502..=504) => Some(Outcome::UpstreamDown),
        (LoginForm::Batch, 200..=299) if !sets_auth_cookie => Some(Outcome::BadCredentials),
        (_, 200..=299) => Some(Outcome::Ok),
        (_, 401) | (LoginForm::Soap | LoginForm::Batch, 403 | 500) | (LoginForm::Json, 403) => {
            Some(Outcome::BadCredentials)
        }
        (LoginForm::Basic, _) => Some(Outcome::NotRefused),
        _ => None,
    }
}

/// How much of a fault is read for its code: it stands in the first few hundred bytes.
pub(crate) const FAULT_MAX: usize = 8 * 1024;

/// Whether only the body of the answer tells a wrong password from a failure of the server: SOAP carries every fault
/// with status 500.
pub(crate) fn is_told_by_body(status: u16, answer: &HeaderMap, form: LoginForm) -> bool {
    let is_soap = matches!(form, LoginForm::Soap | LoginForm::Batch);
    is_soap && status == 500 && !answer.contains_key(http::header::CONTENT_ENCODING)
}

/// Whether a SOAP fault says that name or password is wrong, in XML or in JSON.
pub(crate) fn says_wrong(fault: &[u8]) -> bool {
    const CODES: [&[u8]; 2] = [b"AUTH_FAILED", b"NO_SUCH_ACCOUNT"];
    let has = |code: &[u8]| fault.windows(code.len()).any(|part| part == code);
    CODES.into_iter().any(has)
}

/// The outcome when no server has answered: `status` is what we answered ourselves, 0 if nothing; `left` says that the
/// client went away while the server had its request.
pub(crate) fn unanswered(status: u16, left: bool) -> Option<Outcome> {
    match status {
        502..=504 => Some(Outcome::UpstreamDown),
        0 if left => Some(Outcome::ClientGone),
        _ => None,
    }
}

/// Keeps the beginning of a request body until the name can be read from it. All of it is wiped when dropped.
///
/// A body longer than 64 KiB is dropped at once, and only searched for what every login has.
pub(crate) struct LoginBody {
    form: LoginForm,
    kept: Kept,
    words: LoginWords,
}

/// What is in a body.
enum Found {
    Login(LoginAttempt),
    /// All of it was read.
    NoLogin,
    /// The status, and why it cannot be read.
    Unread(u16, &'static str),
}

const NO_UTF_8: (u16, &str) = (415, "a body that is not UTF-8");
const NO_NAME: Found = Found::Unread(400, "no name that can be logged in with");
const AMBIGUOUS: Found = Found::Unread(400, "more than one name or request");

enum Kept {
    /// One secret for each chunk: a growing buffer would leave unwiped copies behind.
    Pieces {
        pieces: Vec<Secret<Vec<u8>>>,
        len: usize,
    },
    TooLong,
}

impl LoginBody {
    /// An empty body of a request whose path has this form.
    pub(crate) fn new(form: LoginForm) -> Self {
        let kept = Kept::Pieces {
            pieces: Vec::new(),
            len: 0,
        };
        let words = LoginWords::new(form.words());
        Self { form, kept, words }
    }

    /// Copies the next chunk.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.words.push(chunk);
        let Kept::Pieces { pieces, len } = &mut self.kept else {
            return;
        };
        if *len + chunk.len() > BODY_MAX || pieces.len() == PIECES_MAX {
            self.kept = Kept::TooLong;
            return;
        }
        *len += chunk.len();
        pieces.push(Secret::new(chunk.to_vec()));
    }

    /// The attempt in the body. Call it when the request body has ended, not the answer: a long poll would keep the
    /// copy for its whole life.
    ///
    /// # Errors
    /// It may hold a login, and cannot be read.
    pub(crate) fn read(self) -> Result<Option<LoginAttempt>, UnreadableLogin> {
        let (form, logins, is_foreign) = (self.form, self.words.found(), self.words.is_foreign());
        let may_hold_one = logins > 0 || is_foreign;
        match self.found() {
            Found::Login(attempt) if attempt.form == LoginForm::Batch => Ok(Some(LoginAttempt {
                logins: attempt.logins.max(logins),
                ..attempt
            })),
            Found::Login(attempt) => Ok(Some(attempt)),
            Found::Unread(..) if is_foreign => Err(form.unreadable(NO_UTF_8)),
            Found::Unread(status, why) if may_hold_one => Err(form.unreadable((status, why))),
            Found::Unread(..) | Found::NoLogin => Ok(None),
        }
    }

    fn found(self) -> Found {
        let Kept::Pieces { pieces, len } = self.kept else {
            return Found::Unread(413, "a body of more than 64 KiB");
        };
        let mut whole = Vec::with_capacity(len);
        for piece in &pieces {
            whole.extend_from_slice(piece.expose());
        }
        let whole = Secret::new(whole);
        let Ok(text) = std::str::from_utf8(whole.expose()) else {
            return Found::Unread(NO_UTF_8.0, NO_UTF_8.1);
        };
        let text = text.trim_start_matches('\u{feff}').trim_start();
        match self.form {
            LoginForm::Basic => Found::NoLogin,
            LoginForm::Json => json_login(text),
            LoginForm::Soap | LoginForm::Batch if text.starts_with('{') => json_soap(text),
            LoginForm::Soap | LoginForm::Batch => xml_soap(text),
        }
    }
}

/// Whether the bytes of a body are other ones than those of its text (RFC 9110 §8.4), so that no login in it can be read.
///
/// # Errors
/// They are.
pub(crate) fn check_coding(form: LoginForm, headers: &HeaderMap) -> Result<(), UnreadableLogin> {
    let codings = headers.get_all(http::header::CONTENT_ENCODING);
    match codings
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        true => Ok(()),
        false => Err(form.unreadable((415, "an encoded body"))),
    }
}

const BAD_JSON: Found = Found::Unread(400, "JSON that is broken, or says something twice");

/// `{"auth_method":"password","user":"…","password":"…"}`. The password is marked in place, never copied.
fn json_login(text: &str) -> Found {
    #[derive(Deserialize)]
    struct Login {
        user: Option<String>,
        password: Option<JsonPassword>,
    }

    let Ok(First { first: login, .. }) = serde_json::from_str::<First<Login>>(text) else {
        return BAD_JSON;
    };
    let Some(user) = login.user.filter(|user| !user.trim().is_empty()) else {
        return Found::NoLogin;
    };
    let mark = login.password.and_then(|password| password.0);
    LoginAttempt::new(LoginForm::Json, &user, mark).map_or(NO_NAME, Found::Login)
}

/// `{"Body":{"AuthRequest":{"account":{"by":"name","_content":"…"},"password":"…"}}}`, also in a batch.
fn json_soap(text: &str) -> Found {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "Body")]
        body: Option<First<Requests>>,
    }

    #[derive(Deserialize)]
    struct Requests {
        #[serde(rename = "AuthRequest")]
        auth: Option<First<JsonLogin>>,
        #[serde(rename = "EnableTwoFactorAuthRequest")]
        two_factor: Option<First<JsonLogin>>,
        #[serde(rename = "ChangePasswordRequest")]
        change: Option<First<JsonLogin>>,
        #[serde(rename = "BatchRequest")]
        batch: Option<First<Batch>>,
    }

    #[derive(Deserialize)]
    struct Batch {
        #[serde(rename = "AuthRequest")]
        auth: Option<First<JsonLogin>>,
        #[serde(rename = "EnableTwoFactorAuthRequest")]
        two_factor: Option<First<JsonLogin>>,
        #[serde(rename = "ChangePasswordRequest")]
        change: Option<First<JsonLogin>>,
    }

    let Ok(First { first: envelope, .. }) = serde_json::from_str::<First<Envelope>>(text) else {
        return BAD_JSON;
    };
    let Some(First { first: body, .. }) = envelope.body else {
        return Found::NoLogin;
    };
    let (form, auth, two_factor, change) = match body.batch {
        None => (LoginForm::Soap, body.auth, body.two_factor, body.change),
        Some(_) if body.auth.is_some() || body.two_factor.is_some() || body.change.is_some() => return AMBIGUOUS,
        Some(First { first: batch, .. }) => (LoginForm::Batch, batch.auth, batch.two_factor, batch.change),
    };
    let (first, is_change) = match (auth, two_factor, change) {
        (Some(login), None, None) | (None, Some(login), None) => (login, false),
        (None, None, Some(login)) => (login, true),
        (None, None, None) => return Found::NoLogin,
        _ => return AMBIGUOUS,
    };
    let First { first: login, count } = first;
    login.attempt(form, is_change, count)
}

/// A request that logs in, in JSON. The request of the administration side may say `name` instead of `account`.
#[derive(Deserialize)]
struct JsonLogin {
    account: Option<Name>,
    name: Option<Name>,
    password: Option<JsonPassword>,
    #[serde(rename = "oldPassword")]
    old_password: Option<JsonPassword>,
    #[serde(rename = "authToken")]
    auth_token: Option<IgnoredAny>,
    #[serde(rename = "jwtToken")]
    jwt_token: Option<IgnoredAny>,
}

impl JsonLogin {
    fn attempt(self, form: LoginForm, is_change: bool, logins: usize) -> Found {
        let name = match (self.account, self.name) {
            (None, None) => return Found::NoLogin,
            (Some(_), Some(_)) => return AMBIGUOUS,
            (Some(name), None) | (None, Some(name)) => name,
        };
        let Some(typed) = name.typed().filter(|typed| !typed.trim().is_empty()) else {
            return Found::NoLogin;
        };
        let password = if is_change { self.old_password } else { self.password };
        let mark = password.and_then(|password| password.0);
        let proves = self.auth_token.is_none() && self.jwt_token.is_none();
        let attempt = LoginAttempt::new(form, typed, mark);
        attempt.map_or(NO_NAME, |attempt| {
            Found::Login(LoginAttempt {
                logins,
                proves,
                ..attempt
            })
        })
    }
}

/// A password as text or as element with text; its mark, if it is one of these.
struct JsonPassword(Option<PasswordMark>);

impl<'de> Deserialize<'de> for JsonPassword {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PasswordVisitor)
    }
}

struct PasswordVisitor;

impl<'de> Visitor<'de> for PasswordVisitor {
    type Value = JsonPassword;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a password")
    }

    fn visit_str<E>(self, password: &str) -> Result<JsonPassword, E> {
        Ok(JsonPassword(Some(PasswordMark::of(password.as_bytes()))))
    }

    fn visit_bool<E>(self, _: bool) -> Result<JsonPassword, E> {
        Ok(JsonPassword(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<JsonPassword, E> {
        Ok(JsonPassword(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<JsonPassword, E> {
        Ok(JsonPassword(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<JsonPassword, E> {
        Ok(JsonPassword(None))
    }

    fn visit_unit<E>(self) -> Result<JsonPassword, E> {
        Ok(JsonPassword(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonPassword, A::Error> {
        let (mut content, mut count) = (JsonPassword(None), 0);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "_content" => (content, count) = (map.next_value()?, count + 1),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        // Which of several its server takes is not known.
        Ok(if count > 1 { JsonPassword(None) } else { content })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JsonPassword, A::Error> {
        let mut only = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {
            only = None;
        }
        Ok(only.unwrap_or(JsonPassword(None)))
    }
}

/// An element with text, in the ways that the mailbox server reads it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Element {
        #[serde(rename = "_content")]
        content: String,
    },
    List(Vec<Self>),
}

impl Name {
    fn typed(&self) -> Option<&str> {
        match self {
            Self::Text(typed) | Self::Element { content: typed } => Some(typed),
            Self::List(names) => names.first()?.typed(),
        }
    }
}

/// An element as object, or as list of objects of which the first counts. By hand, as the derived forms would
/// copy the whole content, and the password with it.
struct First<T> {
    first: T,
    /// How many there are.
    count: usize,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FirstVisitor(PhantomData))
    }
}

/// An element of such a list: no list, whose nesting would fill the stack.
struct FirstElement<T>(First<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for FirstElement<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ElementVisitor(PhantomData)).map(Self)
    }
}

struct ElementVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ElementVisitor<T> {
    type Value = First<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<First<T>, A::Error> {
        let first = T::deserialize(MapAccessDeserializer::new(map))?;
        Ok(First { first, count: 1 })
    }
}

struct FirstVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstVisitor<T> {
    type Value = First<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<First<T>, A::Error> {
        let first = T::deserialize(MapAccessDeserializer::new(map))?;
        Ok(First { first, count: 1 })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
        let first = list.next_element::<FirstElement<T>>()?;
        let FirstElement(mut first) = first.ok_or_else(|| serde::de::Error::invalid_length(0, &self))?;
        while list.next_element::<IgnoredAny>()?.is_some() {
            first.count += 1;
        }
        Ok(first)
    }
}

/// The position in a SOAP document. The `account` of the header's context is [`SoapPosition::Elsewhere`]: it names the
/// account that the request is about, not the one that logs in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SoapPosition {
    Document,
    Envelope,
    Body,
    Batch,
    AuthRequest(LoginForm),
    ChangePassword(LoginForm),
    Account(LoginForm),
    Token,
    Password,
    Elsewhere,
}

impl SoapPosition {
    /// The position of a child element. Namespaces are not compared: the mailbox server would refuse a wrong one, and
    /// the worst effect here is a record of that.
    fn child(self, name: &str) -> Self {
        match (self, name) {
            (Self::Document, "Envelope") => Self::Envelope,
            (Self::Envelope, "Body") => Self::Body,
            (Self::Body, "BatchRequest") => Self::Batch,
            (Self::Body, "AuthRequest" | "EnableTwoFactorAuthRequest") => Self::AuthRequest(LoginForm::Soap),
            (Self::Batch, "AuthRequest" | "EnableTwoFactorAuthRequest") => Self::AuthRequest(LoginForm::Batch),
            (Self::Body, "ChangePasswordRequest") => Self::ChangePassword(LoginForm::Soap),
            (Self::Batch, "ChangePasswordRequest") => Self::ChangePassword(LoginForm::Batch),
            (Self::AuthRequest(form) | Self::ChangePassword(form), "account" | "name") => Self::Account(form),
            (Self::AuthRequest(_), "password") | (Self::ChangePassword(_), "oldPassword") => Self::Password,
            (Self::AuthRequest(_), "authToken" | "jwtToken") => Self::Token,
            _ => Self::Elsewhere,
        }
    }
}

/// `<Envelope><Body><AuthRequest><account by="name">…</account>…`, also in a batch, or `<AuthRequest name="…">`.
///
/// A document type ends the reading: SOAP forbids it (SOAP 1.2 part 1 §5), and it is the only source of entities
/// other than XML's own five.
fn xml_soap(text: &str) -> Found {
    let mut reader = SoapReader::default();
    // What was read before it ended counts.
    let is_whole = reader.read(text).is_some();
    let Some(attempt) = reader.attempt else {
        return if is_whole {
            Found::NoLogin
        } else {
            Found::Unread(400, "XML that cannot be read")
        };
    };
    if reader.names > 1 {
        return AMBIGUOUS;
    }
    let mark = match (attempt.mark, reader.password) {
        (None, Some(marker)) => Some(marker.mark()),
        (Some(_), Some(_)) => None,
        (mark, None) => mark,
    };
    Found::Login(LoginAttempt {
        // A part of a password is no password.
        mark: mark.filter(|_| is_whole),
        logins: reader.logins,
        proves: !reader.has_token,
        ..attempt
    })
}

/// Reads the first login of a document, and counts them.
#[derive(Default)]
struct SoapReader {
    attempt: Option<LoginAttempt>,
    typed: String,
    password: Option<PasswordMarker>,
    logins: usize,
    /// Names in the first login.
    names: usize,
    /// The first login has a token.
    has_token: bool,
}

impl SoapReader {
    /// `None`: the document cannot be read to its end.
    fn read(&mut self, text: &str) -> Option<()> {
        let mut reader = Reader::from_str(text);
        let mut places = vec![SoapPosition::Document];
        loop {
            let place = *places.last()?;
            match reader.read_event().ok()? {
                Event::Start(start) if places.len() < DEPTH_MAX => places.push(self.begin(place, &start)?),
                Event::Empty(start) => drop(self.begin(place, &start)?),
                Event::End(_) => {
                    self.end(place)?;
                    places.pop();
                }
                Event::Eof if places.len() == 1 => return Some(()),
                Event::Start(_) | Event::DocType(_) | Event::Eof => return None,
                // All that follows is text; that of a name is kept, that of a password only marked.
                text if self.logins == 1 => match (place, text) {
                    (SoapPosition::Account(_), text) if self.attempt.is_none() => self.name(text)?,
                    (SoapPosition::Password, text) => self.mark(text),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// An element begins. `None`: it has no good attributes.
    fn begin(&mut self, place: SoapPosition, start: &BytesStart<'_>) -> Option<SoapPosition> {
        let child = place.child(start.local_name().into_inner());
        if let SoapPosition::AuthRequest(form) | SoapPosition::ChangePassword(form) = child {
            self.logins += 1;
            if self.attempt.is_none() {
                *self = Self {
                    attempt: in_attributes(form, start)?,
                    logins: 1,
                    ..Self::default()
                };
                self.names = usize::from(self.attempt.is_some());
            }
        }
        if self.logins == 1 {
            self.names += usize::from(matches!(child, SoapPosition::Account(_)));
            self.has_token |= child == SoapPosition::Token;
        }
        Some(child)
    }

    /// An element ends. `None`: its name is none.
    fn end(&mut self, place: SoapPosition) -> Option<()> {
        if let SoapPosition::Account(form) = place
            && self.attempt.is_none()
            && !self.typed.trim().is_empty()
        {
            self.attempt = Some(LoginAttempt::new(form, self.typed.trim(), None)?);
        }
        Some(())
    }

    fn name(&mut self, text: Event<'_>) -> Option<()> {
        match text {
            Event::Text(text) => self.typed.push_str(&text.xml10_content()),
            Event::CData(text) => self.typed.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => self.typed.push(resolved(&reference)?),
            _ => {}
        }
        Some(())
    }

    fn mark(&mut self, text: Event<'_>) {
        let marker = self.password.get_or_insert_default();
        match text {
            Event::Text(text) => marker.push(text.xml10_content().as_bytes()),
            Event::CData(text) => marker.push(text.xml10_content().as_bytes()),
            Event::GeneralRef(reference) => {
                let mut utf8 = [0; 4];
                let resolved = resolved(&reference).map(|letter| letter.encode_utf8(&mut utf8));
                resolved.iter().for_each(|letter| marker.push(letter.as_bytes()));
            }
            _ => {}
        }
    }
}

/// The request of the administration side may carry name and password as attributes.
/// `None`: they cannot be read.
fn in_attributes(form: LoginForm, start: &BytesStart<'_>) -> Option<Option<LoginAttempt>> {
    let value = |name| {
        let Some(attribute) = start.try_get_attribute(name).ok()? else {
            return Some(None);
        };
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
        Some(Some(value.into_owned()))
    };
    let mark = value("password")?.map(|password| PasswordMark::of(Secret::new(password).expose().as_bytes()));
    match value("name")?.filter(|name| !name.trim().is_empty()) {
        Some(name) => Some(Some(LoginAttempt::new(form, &name, mark)?)),
        None => Some(None),
    }
}

/// A character reference, or one of the five entities that XML itself has.
fn resolved(reference: &BytesRef<'_>) -> Option<char> {
    if reference.is_char_ref() {
        return reference.resolve_char_ref().ok()?;
    }
    let text = quick_xml::escape::resolve_xml_entity(&reference.xml10_content())?;
    text.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    const SECRET: &str = "s3cr3t";

    fn seen(form: LoginForm, mechanism: &'static str, user: &str) -> Option<LoginAttempt> {
        Some(LoginAttempt {
            mechanism,
            user: user.to_owned(),
            form,
            mark: None,
            logins: 1,
            proves: true,
        })
    }

    fn soap(user: &str) -> Option<LoginAttempt> {
        seen(LoginForm::Soap, "SOAP", user)
    }

    fn read(form: LoginForm, chunks: &[&[u8]]) -> Option<LoginAttempt> {
        let attempt = read_all(form, chunks)?;
        Some(LoginAttempt {
            mark: None,
            logins: 1,
            proves: true,
            ..attempt
        })
    }

    fn read_all(form: LoginForm, chunks: &[&[u8]]) -> Option<LoginAttempt> {
        let mut body = LoginBody::new(form);
        for chunk in chunks {
            body.push(chunk);
        }
        body.read().ok().flatten()
    }

    /// However a password is written, it is the same one.
    #[test]
    fn passwords_are_told_from_others() {
        let mark = Some(PasswordMark::of(b"s3<r3t"));
        for (form, text) in [
            (LoginForm::Json, r#"{"user":"bob","password":"s3<r3t"}"#.to_owned()),
            (LoginForm::Json, r#"{"password":"s3\u003cr3t","user":"bob"}"#.to_owned()),
            (
                LoginForm::Soap,
                r#"{"Body":{"AuthRequest":{"account":"bob","password":{"_content":"s3<r3t"}}}}"#.to_owned(),
            ),
            (
                LoginForm::Soap,
                r#"{"Body":{"AuthRequest":{"account":"bob","password":["s3<r3t"]}}}"#.to_owned(),
            ),
            (
                LoginForm::Soap,
                in_body("<AuthRequest><account>bob</account><password>s3&lt;r3t</password></AuthRequest>"),
            ),
            (
                LoginForm::Soap,
                in_body("<AuthRequest><password>s3<![CDATA[<]]>r3t</password><account>bob</account></AuthRequest>"),
            ),
            (
                LoginForm::Soap,
                in_body(r#"<AuthRequest name="bob" password="s3&lt;r3t"/>"#),
            ),
        ] {
            let attempt = read_all(form, &[text.as_bytes()]).unwrap();
            assert_eq!((attempt.user.as_str(), attempt.mark), ("bob", mark), "{text}");
        }
        for text in [
            r#"{"user":"bob","password":null}"#,
            r#"{"user":"bob","password":7}"#,
            r#"{"user":"bob"}"#,
        ] {
            let attempt = read_all(LoginForm::Json, &[text.as_bytes()]).unwrap();
            assert_eq!(attempt.mark, None, "{text}");
        }
    }

    #[test]
    fn logins_of_a_batch_are_counted() {
        let one = "<AuthRequest><account>bob</account><password>a</password></AuthRequest>";
        for (request, logins) in [
            (format!("<BatchRequest>{one}</BatchRequest>"), 1),
            (format!("<BatchRequest>{one}{one}<NoOpRequest/>{one}</BatchRequest>"), 3),
            (format!("<BatchRequest><AuthRequest/>{one}</BatchRequest>"), 2),
            (
                format!("<BatchRequest>{one}<AuthRequest name=\"eve\"/></BatchRequest>"),
                2,
            ),
        ] {
            let attempt = read_all(LoginForm::Soap, &[in_body(&request).as_bytes()]).unwrap();
            assert_eq!((attempt.form, attempt.logins), (LoginForm::Batch, logins), "{request}");
        }
        let json = r#"{"Body":{"BatchRequest":{"AuthRequest":[{"account":"bob"},{"account":"eve"}]}}}"#;
        assert_eq!(read_all(LoginForm::Soap, &[json.as_bytes()]).unwrap().logins, 2);
    }

    /// Whole, cut in two at every position, and in small pieces: always the same result.
    #[track_caller]
    fn check(form: LoginForm, text: &str, expected: Option<LoginAttempt>) {
        let bytes = text.as_bytes();
        assert_eq!(read(form, &[bytes]), expected, "{text}");
        for cut in 0..bytes.len().min(400) {
            assert_eq!(
                read(form, &[&bytes[..cut], &bytes[cut..]]),
                expected,
                "{text} cut at {cut}"
            );
        }
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / 200 + 1).collect();
        assert_eq!(read(form, &pieces), expected, "{text} in pieces");
    }

    fn in_body(request: &str) -> String {
        format!(
            r#"<soap:Envelope xmlns:soap="http://www.w3.org/2003/05/soap-envelope"><soap:Header><context xmlns="urn:zimbra"><account by="name">header@example.com</account></context></soap:Header><soap:Body>{request}</soap:Body></soap:Envelope>"#
        )
    }

    #[test]
    fn names_in_xml() {
        for (request, expected) in [
            (
                r#"<AuthRequest xmlns="urn:zimbraAccount"><account by="name">bob@example.com</account><password>s3cr3t</password></AuthRequest>"#,
                soap("bob@example.com"),
            ),
            (
                r#"<a:AuthRequest xmlns:a="urn:zimbraAccount"><a:password>s3cr3t</a:password><a:account>bob</a:account></a:AuthRequest>"#,
                soap("bob"),
            ),
            (
                "<AuthRequest><!-- x --><account>\n bob&amp;co&#64;<![CDATA[x<y]]>\n</account></AuthRequest>",
                soap("bob&co@x<y"),
            ),
            (
                "<AuthRequest><account>b<!-- x -->ob</account></AuthRequest>",
                soap("bob"),
            ),
            (
                r#"<AuthRequest xmlns="urn:zimbraAdmin" name="adm&#105;n" password="s3cr3t"/>"#,
                soap("admin"),
            ),
            (
                r#"<AuthRequest xmlns="urn:zimbraAdmin" name="admin" password="s3cr3t"></AuthRequest>"#,
                soap("admin"),
            ),
            (
                "<AuthRequest><name>admin</name><password>s3cr3t</password></AuthRequest>",
                soap("admin"),
            ),
            (
                "<AuthRequest><password>&unknown;</password><account>bob</account></AuthRequest>",
                soap("bob"),
            ),
            (
                "<BatchRequest><NoOpRequest/><AuthRequest><account>bob</account></AuthRequest></BatchRequest>",
                seen(LoginForm::Batch, "SOAP", "bob"),
            ),
            ("<AuthRequest><account>&unknown;</account></AuthRequest>", None),
            ("<AuthRequest><account></account></AuthRequest>", None),
            ("<AuthRequest><account/></AuthRequest>", None),
            ("<AuthRequest><account>a&#10;b</account></AuthRequest>", None),
            ("<AuthRequest><authToken>0_1_2</authToken></AuthRequest>", None),
            ("<AuthRequest><x><account>bob</account></x></AuthRequest>", None),
            ("<SearchRequest><account>bob</account></SearchRequest>", None),
            ("<AuthRequest><account>bob", None),
            ("<AuthRequest><account>bob</acount>", None),
        ] {
            check(LoginForm::Soap, &in_body(request), expected.clone());
            check(LoginForm::Soap, &format!("\u{feff}  {}", in_body(request)), expected);
        }
        check(
            LoginForm::Soap,
            &format!(
                r#"<?xml version="1.0"?>{}"#,
                in_body("<AuthRequest><account>bob</account></AuthRequest>")
            ),
            soap("bob"),
        );
        check(
            LoginForm::Soap,
            "<AuthRequest><account>bob</account></AuthRequest>",
            None,
        );
    }

    #[test]
    fn hostile_xml() {
        let login = in_body("<AuthRequest><account>bob</account></AuthRequest>");
        check(
            LoginForm::Soap,
            &format!(r#"<!DOCTYPE a [<!ENTITY b "eve">]>{login}"#),
            None,
        );
        check(LoginForm::Soap, &format!("{}{login}", "<a>".repeat(20_000)), None);
        check(LoginForm::Soap, "<", None);
        check(LoginForm::Soap, "", None);
        assert_eq!(read(LoginForm::Soap, &[b"<Envelope>\xff</Envelope>"]), None);
    }

    #[test]
    fn names_in_json_soap() {
        for (text, expected) in [
            (
                r#"{"Body":{"AuthRequest":{"_jsns":"urn:zimbraAccount","account":{"by":"name","_content":"bob@example.com"},"password":{"_content":"s3cr3t"}}}}"#,
                soap("bob@example.com"),
            ),
            (
                r#"{"Header":{"context":{"account":{"by":"name","_content":"eve"}}},"Body":{"AuthRequest":{"account":"bob","password":"s3cr3t"}}}"#,
                soap("bob"),
            ),
            (
                r#" {"Body":{"AuthRequest":[{"account":[{"by":"name","_content":"bob"}]},{"account":"eve"}]}}"#,
                soap("bob"),
            ),
            (
                r#"{"Body":{"AuthRequest":{"password":"s3\u0063r3t","account":"b\u006fb"}}}"#,
                soap("bob"),
            ),
            (r#"{"Body":{"Auth\u0052equest":{"account":"bob"}}}"#, soap("bob")),
            (
                r#"{"Body":{"AuthRequest":{"_jsns":"urn:zimbraAdmin","name":"admin","password":"s3cr3t"}}}"#,
                soap("admin"),
            ),
            (
                r#"{"Body":{"BatchRequest":{"AuthRequest":[{"account":"bob"},{"account":"eve"}]}}}"#,
                seen(LoginForm::Batch, "SOAP", "bob"),
            ),
            (r#"{"Body":{"BatchRequest":{"NoOpRequest":{}}}}"#, None),
            (r#"{"Body":{"SearchRequest":{"account":"bob"}}}"#, None),
            (r#"{"Body":{"AuthRequest":{"authToken":"0_1_2"}}}"#, None),
            (r#"{"Body":{"AuthRequest":{"account":7}}}"#, None),
            (r#"{"Body":{"AuthRequest":[]}}"#, None),
            (r#"{"Body":{"AuthRequest":["bob"]}}"#, None),
            (r#"{"Body":{"AuthRequest":{"account":"a\nb"}}}"#, None),
            (r#"{"Body":{"AuthRequest":{"account":"bob"}}"#, None),
            (r#"{"Body":{"AuthRequest":{"account":"bob","account":"eve"}}}"#, None),
            (r#"{"AuthRequest":{"account":"bob"}}"#, None),
            ("{}", None),
        ] {
            check(LoginForm::Soap, text, expected);
        }
        check(LoginForm::Soap, &format!(r#"{{"x":{}"#, "[".repeat(30_000)), None);
        check(LoginForm::Soap, &format!(r#"{{"Body":{}"#, "[".repeat(30_000)), None);
        check(
            LoginForm::Soap,
            &format!(r#"{{"Body":{{"AuthRequest":{{"account":{}"#, "[".repeat(30_000)),
            None,
        );
    }

    #[test]
    fn names_in_json_logins() {
        for (text, expected) in [
            (
                r#"{"auth_method":"password","user":"bob@example.com","password":"s3cr3t"}"#,
                Some("bob@example.com"),
            ),
            (r#"{"password":"s3\"cr3t","user":"bob"}"#, Some("bob")),
            (r#"{"auth_method":"otp","otp":"123456"}"#, None),
            (r#"{"user":{"x":"bob"}}"#, None),
            (r#"{"user":""}"#, None),
            (r#""bob""#, None),
            (r#"["bob"]"#, None),
            ("user=bob&password=s3cr3t", None),
            ("<user>bob</user>", None),
        ] {
            check(
                LoginForm::Json,
                text,
                expected.and_then(|user| seen(LoginForm::Json, "JSON", user)),
            );
            check(LoginForm::Basic, text, None);
        }
    }

    #[test]
    fn long_bodies_are_let_go() {
        let login = |fill: usize| format!(r#"{{"user":"bob","x":"{}"}}"#, "a".repeat(fill));
        let fits = BODY_MAX - login(0).len();
        assert!(read(LoginForm::Json, &[login(fits).as_bytes()]).is_some());
        assert_eq!(read(LoginForm::Json, &[login(fits + 1).as_bytes()]), None);
        assert_eq!(read(LoginForm::Json, &[login(fits).as_bytes(), b" "]), None);
        assert_eq!(
            read(LoginForm::Json, &[login(BODY_MAX).as_bytes(), login(0).as_bytes()]),
            None
        );
        let many = vec![b" ".as_slice(); PIECES_MAX - 1];
        assert!(read(LoginForm::Json, &[many.as_slice(), &[login(0).as_bytes()]].concat()).is_some());
        assert_eq!(
            read(
                LoginForm::Json,
                &[many.as_slice(), &[b" ", login(0).as_bytes()]].concat()
            ),
            None
        );
    }

    #[test]
    fn nothing_seen_holds_the_password() {
        let xml = in_body("<AuthRequest><password>s3cr3t</password><account>bob</account></AuthRequest>");
        for text in [
            xml.as_str(),
            r#"{"Body":{"AuthRequest":{"password":"s3cr3t","account":"bob"}}}"#,
        ] {
            let seen = format!("{:?}", read(LoginForm::Soap, &[text.as_bytes()]));
            assert!(seen.contains("bob") && !seen.contains(SECRET), "{seen}");
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/service/soap", Some(LoginForm::Soap)),
            ("/service/soap/", Some(LoginForm::Soap)),
            ("/service/soap/AuthRequest", Some(LoginForm::Soap)),
            ("/service/soap/BatchRequest", Some(LoginForm::Soap)),
            ("/service/soap/NoOpRequest", Some(LoginForm::Soap)),
            ("//service/./s%6fap/AuthRequest", Some(LoginForm::Soap)),
            ("/service;x/soap;y=1/AuthRequest", Some(LoginForm::Soap)),
            ("/service/soap%3bx/AuthRequest", None),
            ("/service/admin/soap", Some(LoginForm::Soap)),
            ("/service/admin/soap/AuthRequest", Some(LoginForm::Soap)),
            ("/zx/auth/login", Some(LoginForm::Json)),
            ("/zx/auth/v1/login", Some(LoginForm::Json)),
            ("/zx/auth/v2/login/", Some(LoginForm::Json)),
            ("/zx/auth/v3/saml/login", Some(LoginForm::Json)),
            ("/zx/auth/v2/logout", None),
            ("/zx/auth/v2/login/x", None),
            ("/zx/login/v3/config", None),
            ("/zx/auth", None),
            ("/service/soapy", None),
            ("/x/service/soap", None),
            ("/service/home/~/", None),
            ("/../service/soap", None),
            ("/service/%ff", None),
            ("/", None),
        ] {
            assert_eq!(is_login_path(path), expected, "{path}");
        }
    }

    #[test]
    fn basic_logins() {
        for (value, expected) in [
            ("Basic RVhcYm9iOnB3", Some("EX\\bob")),
            ("basic Ym9iOnB3", Some("bob")),
            ("Basic OnB3", None),
            ("Bearer Ym9iOnB3", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            let uri = Uri::from_static("/dav/bob/Calendar/");
            let found = basic(&Method::POST, &uri, &headers).unwrap();
            let mark = found.as_ref().and_then(|found| found.mark);
            assert!(found.is_none() || mark == Some(PasswordMark::of(b"pw")), "{value}");
            let expected = expected.and_then(|user| seen(LoginForm::Basic, "BASIC", user));
            assert_eq!(
                found,
                expected.map(|attempt| LoginAttempt { mark, ..attempt }),
                "{value}"
            );
        }
        let basic = |uri: &str, headers: &HeaderMap| basic(&Method::GET, &uri.parse().unwrap(), headers);
        assert_eq!(basic("/dav/bob/", &HeaderMap::new()), Ok(None));
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Basic Ym9iOnB3"))]);
        for (path, asks) in [
            ("/Microsoft-Server-ActiveSync?User=x", true),
            ("/EWS/Exchange.asmx", true),
            ("/home/bob/inbox", true),
            ("/service/home/~/inbox", true),
            ("/service/soap/NoOpRequest", false),
            ("/static/logo.png", false),
            ("/", false),
        ] {
            let found = basic(path, &headers).unwrap();
            assert_eq!(found.is_some(), asks, "{path}");
            assert!(found.is_none_or(|found| !found.proves), "{path}");
        }
    }

    /// What a server may read although we do not.
    #[test]
    fn basic_in_unusual_forms() {
        let find = |lines: &[&[u8]]| {
            let line = |line: &&[u8]| (AUTHORIZATION, HeaderValue::from_bytes(line).unwrap());
            let headers = lines.iter().map(line).collect();
            let found = basic(&Method::POST, &Uri::from_static("/dav/bob/"), &headers);
            found
                .map(|found| found.map(|found| found.user))
                .map_err(|error| error.status)
        };
        let bob = || Ok(Some("bob".to_owned()));
        for (line, expected) in [
            (&b"Basic !Ym9iOnB3"[..], bob()),
            (b"Basic Ym9i OnB3", bob()),
            (b"Basic\tYm9iOnB3", bob()),
            // bob:\xff\xfe>?
            (b"Basic Ym9iOv_-Pj8", bob()),
            // bob\n and \tbob
            (b"Basic Ym9iCjpwdw==", bob()),
            (b"Basic CWJvYjpwdw==", bob()),
            // bo\x01b, b\xf6b
            (b"Basic Ym8BYjpwdw==", Err(400)),
            (b"Basic YvZiOnB3", Ok(Some("b\u{fffd}b".to_owned()))),
            (b"Basic Ym9i", Ok(None)),
            (b"Basic", Ok(None)),
            (b"Negotiate YII=", Ok(None)),
        ] {
            assert_eq!(find(&[line]), expected, "{}", line.escape_ascii());
        }
        assert_eq!(find(&[b"Bearer x", b"Basic Ym9iOnB3"]), Err(400));
    }

    /// Each of these logs in at some server, or at none.
    #[test]
    fn bodies_that_cannot_be_read_are_refused() {
        let long = " ".repeat(BODY_MAX);
        let login = r#"{"Body":{"AuthRequest":{"account":"bob","password":"a"}}}"#;
        let xml = in_body("<AuthRequest><account>bob</account><password>a</password></AuthRequest>");
        let utf_16: Vec<u8> = xml.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let latin_1 = [b"<!-- \xe4 -->".as_slice(), xml.as_bytes()].concat();
        let bytes = |text: &str| text.as_bytes().to_vec();
        for (body, status) in [
            (bytes(&format!("{login}{long}")), 413),
            (bytes(&format!("{xml}{long}")), 413),
            (bytes(&format!("{}{long}", login.replace('A', "\\u0041"))), 413),
            (utf_16, 415),
            (latin_1, 415),
            (bytes(&format!("{login}}}")), 400),
            (bytes(&format!("<!DOCTYPE a>{xml}")), 400),
            (
                bytes(r#"{"Body":{"AuthRequest":{"account":"x","account":"bob"}}}"#),
                400,
            ),
            (
                bytes(r#"{"Body":{"AuthRequest":{"account":"bob","password":"x","password":"a"}}}"#),
                400,
            ),
            (
                bytes(r#"{"Body":{"x":1},"Body":{"AuthRequest":{"account":"bob"}}}"#),
                400,
            ),
            (bytes(r#"{"Body":{"AuthRequest":{"account":"x","name":"bob"}}}"#), 400),
            (bytes(r#"{"Body":{"AuthRequest":{"account":"b\u0001b"}}}"#), 400),
            (
                bytes(r#"{"Body":{"AuthRequest":{"account":"x"},"BatchRequest":{}}}"#),
                400,
            ),
            (
                bytes(&in_body("<AuthRequest><account>b&#9;ob</account></AuthRequest>")),
                400,
            ),
            (
                bytes(&in_body(
                    "<AuthRequest><account>x</account><name>bob</name></AuthRequest>",
                )),
                400,
            ),
        ] {
            let mut read = LoginBody::new(LoginForm::Soap);
            body.chunks(4096).for_each(|chunk| read.push(chunk));
            let status_of = read.read().map_err(|error| error.status);
            assert_eq!(status_of, Err(status), "{}", body.escape_ascii());
        }
        for text in [
            r#"{"user":"x","user":"bob","password":"a"}"#,
            r#"{"user":"bob","password":"a"}}"#,
        ] {
            let mut read = LoginBody::new(LoginForm::Json);
            read.push(text.as_bytes());
            assert_eq!(read.read().map_err(|error| error.status), Err(400), "{text}");
        }
    }

    /// Mails, searches and renewals of sessions pass, whatever their size and alphabet.
    #[test]
    fn what_is_no_login_passes() {
        let long = "<AuthRequest> \\\"AuthRequest\\\": ".repeat(BODY_MAX / 30);
        let mail = format!(r#"{{"Body":{{"SendMsgRequest":{{"m":{{"content":"{long}"}}}}}}}}"#);
        let escaped = long.replace('<', "&lt;");
        for body in [
            mail.replace("<AuthRequest>", "").into_bytes(),
            in_body(&format!("<SendMsgRequest>{escaped}</SendMsgRequest>")).into_bytes(),
            b"<Envelope><Body><SearchRequest>\xe4</SearchRequest></Body></Envelope>".to_vec(),
            in_body("<AuthRequest><authToken>0_1_2</authToken></AuthRequest>").into_bytes(),
            b"broken".to_vec(),
            Vec::new(),
        ] {
            let mut read = LoginBody::new(LoginForm::Soap);
            body.chunks(4096).for_each(|chunk| read.push(chunk));
            assert_eq!(read.read(), Ok(None), "{}", body[..body.len().min(200)].escape_ascii());
        }
    }

    #[test]
    fn changes_of_passwords_are_logins() {
        let old = Some(PasswordMark::of(b"old"));
        for text in [
            r#"{"Body":{"ChangePasswordRequest":{"account":"bob","oldPassword":"old","password":"new"}}}"#.to_owned(),
            r#"{"Body":{"EnableTwoFactorAuthRequest":{"name":"bob","password":"old"}}}"#.to_owned(),
            in_body(
                "<ChangePasswordRequest><account>bob</account><oldPassword>old</oldPassword><password>n</password>\
                 </ChangePasswordRequest>",
            ),
        ] {
            let found = read_all(LoginForm::Soap, &[text.as_bytes()]).unwrap();
            assert_eq!((found.user.as_str(), found.mark), ("bob", old), "{text}");
        }
    }

    /// A token of one's own is taken whatever else the request says; the same mark for other passwords would let them
    /// count once.
    #[test]
    fn a_token_proves_nothing_and_what_is_ambiguous_has_no_mark() {
        for (text, proves) in [
            (
                in_body("<AuthRequest><account>bob</account><authToken>t</authToken></AuthRequest>"),
                false,
            ),
            (
                r#"{"Body":{"AuthRequest":{"account":"bob","jwtToken":{"_content":"t"}}}}"#.to_owned(),
                false,
            ),
            (
                in_body("<AuthRequest name='bob' password='a'><password>b</password></AuthRequest>"),
                true,
            ),
            (
                r#"{"Body":{"AuthRequest":{"account":"bob","password":["a","b"]}}}"#.to_owned(),
                true,
            ),
            (
                r#"{"Body":{"AuthRequest":{"account":"bob","password":{"_content":"a","_content":"b"}}}}"#.to_owned(),
                true,
            ),
        ] {
            let found = read_all(LoginForm::Soap, &[text.as_bytes()]).unwrap();
            assert_eq!((found.proves, found.mark), (proves, None), "{text}");
            let expected = if proves { Outcome::Ok } else { Outcome::NotRefused };
            assert_eq!(found.outcome(200, true), Some(expected), "{text}");
        }
    }

    #[test]
    fn outcomes() {
        use Outcome::{BadCredentials, NotRefused, Ok, UpstreamDown};
        for (form, status, cookie, expected) in [
            (LoginForm::Basic, 101, false, Some(NotRefused)),
            (LoginForm::Basic, 200, false, Some(Ok)),
            (LoginForm::Basic, 207, false, Some(Ok)),
            (LoginForm::Basic, 304, false, Some(NotRefused)),
            (LoginForm::Basic, 401, false, Some(BadCredentials)),
            (LoginForm::Basic, 403, false, Some(NotRefused)),
            (LoginForm::Basic, 404, false, Some(NotRefused)),
            (LoginForm::Basic, 500, false, Some(NotRefused)),
            (LoginForm::Basic, 501, false, Some(NotRefused)),
            (LoginForm::Soap, 200, true, Some(Ok)),
            (LoginForm::Soap, 200, false, Some(Ok)),
            (LoginForm::Soap, 302, false, None),
            (LoginForm::Soap, 401, false, Some(BadCredentials)),
            (LoginForm::Soap, 403, false, Some(BadCredentials)),
            (LoginForm::Soap, 404, false, None),
            (LoginForm::Soap, 500, false, Some(BadCredentials)),
            (LoginForm::Batch, 200, true, Some(Ok)),
            (LoginForm::Batch, 200, false, Some(BadCredentials)),
            (LoginForm::Batch, 500, false, Some(BadCredentials)),
            (LoginForm::Json, 200, true, Some(Ok)),
            (LoginForm::Json, 200, false, Some(Ok)),
            (LoginForm::Json, 400, false, None),
            (LoginForm::Json, 401, false, Some(BadCredentials)),
            (LoginForm::Json, 403, false, Some(BadCredentials)),
            (LoginForm::Json, 500, false, None),
        ] {
            assert_eq!(outcome(status, cookie, form), expected, "{form:?} {status} {cookie}");
        }
        for form in [LoginForm::Basic, LoginForm::Soap, LoginForm::Batch, LoginForm::Json] {
            for status in [502, 503, 504] {
                assert_eq!(outcome(status, false, form), Some(UpstreamDown), "{form:?} {status}");
            }
            let expected = (form == LoginForm::Basic).then_some(NotRefused);
            assert_eq!(outcome(429, false, form), expected);
        }
    }

    #[test]
    fn faults_tell_a_wrong_password_from_a_broken_server() {
        let plain = HeaderMap::new();
        let packed = HeaderMap::from_iter([(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        assert!(is_told_by_body(500, &plain, LoginForm::Soap) && !is_told_by_body(500, &packed, LoginForm::Soap));
        assert!(!is_told_by_body(401, &plain, LoginForm::Soap) && !is_told_by_body(500, &plain, LoginForm::Json));
        for (fault, wrong) in [
            ("<Code>account.AUTH_FAILED</Code>", true),
            (r#"{"Error":{"Code":"account.NO_SUCH_ACCOUNT"}}"#, true),
            ("<Code>service.FAILURE</Code>", false),
            ("<Code>account.CHANGE_PASSWORD</Code>", false),
            ("", false),
        ] {
            assert_eq!(says_wrong(fault.as_bytes()), wrong, "{fault}");
        }
    }

    #[test]
    fn no_server_has_answered() {
        assert_eq!(unanswered(502, false), Some(Outcome::UpstreamDown));
        assert_eq!(unanswered(0, true), Some(Outcome::ClientGone));
        for (status, left) in [(0, false), (403, false), (408, true), (413, false)] {
            assert_eq!(unanswered(status, left), None, "{status}");
        }
    }
}
