//! Domains over the admin API: their virtual host names and certificates, listed and changed.
//!
//! A change goes through the rules of `provision` into the directory that the node file names, and
//! is then looked for there, so that it is in force at once. Private keys come in and are never returned.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use mail_directory::attributes::{self as a, Attribute};
use mail_directory::edit::{Act, Change, changed};
use mail_directory::{Entry, Secret, System, View, names};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::admin::act;
use crate::admin::api_error::ApiError;
use crate::admin::caller::Caller;
use crate::admin::health::Certificate;
use crate::admin::turns::Turns;
use crate::app::certificates;
use crate::app::env::AdminEnv;
use crate::app::stored::{replace, values as values_of};
use crate::config::{Config, Source};
use crate::provision::{self, CommandOutput, values};
use crate::tls::certificate::CertKey;
use crate::tls::certificate_store::CertStore;

/// In the first line of a private key.
const PRIVATE: &str = "PRIVATE KEY-----";

/// The domains found.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Domains {
    /// Where the domains are stored, as a sentence.
    pub kept_in: String,
    /// By name.
    pub domains: Vec<Domain>,
    /// How many more were found than `limit`.
    pub more: u64,
}

/// A domain, its virtual host names and its certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Domain {
    /// Its name.
    pub name: String,
    /// The target of this alias domain.
    pub alias_of: Option<String>,
    /// Its virtual host names, as in the configuration in force.
    pub virtual_hosts: Vec<VirtualHostName>,
    /// Its own certificate, if one is in use; without it clients get the default certificate.
    pub certificate: Option<Certificate>,
    /// Why the certificate in the directory is not in use.
    pub problem: Option<String>,
    /// Its virtual host names for which the certificate in use is not valid.
    pub uncovered: Vec<String>,
}

/// A virtual host name.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = VirtualHost)]
pub(crate) struct VirtualHostName {
    /// The name, or a pattern `*.name`.
    pub name: String,
    /// Which certificate clients get for it: `own`, `default`, `other` (another domain's) or `none`.
    pub shown: String,
    /// Whether that certificate is valid for the name.
    pub covered: bool,
    /// Another domain that has the name as well, and to which it belongs.
    pub taken_by: Option<String>,
}

/// Which domains.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DomainQuery {
    /// Only those with this text in their name or a virtual host name.
    text: Option<String>,
    /// At most this many.
    limit: Option<usize>,
    /// Only those with a name that no valid certificate covers.
    #[serde(default)]
    faulty: bool,
}

/// Lists domains with their virtual host names and the certificates in use for them.
#[utoipa::path(get, path = "/v1/domains", params(DomainQuery), responses((status = 200, body = Domains)))]
pub(crate) async fn list(
    State(env): State<Arc<AdminEnv>>,
    Extension(turns): Extension<Arc<Turns>>,
    Query(query): Query<DomainQuery>,
) -> Result<Json<Domains>, ApiError> {
    let failed = |error: &dyn std::fmt::Display| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let turn = turns
        .lists
        .clone()
        .acquire_owned()
        .await
        .map_err(|error| failed(&error))?;
    let (system, store) = (env.snapshot.load().system.clone(), env.certificates());
    let kept_in = kept_in(&env.config.load());
    // A hoster has tens of thousands, and each certificate is examined.
    let matching = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        matching(&system, &store, &query)
    });
    let (domains, more) = matching.await.map_err(|error| failed(&error))?;
    Ok(Json(Domains {
        kept_in,
        domains,
        more: more as u64,
    }))
}

/// The domains that are meant, and how many more there are.
fn matching(system: &System, store: &CertStore, query: &DomainQuery) -> (Vec<Domain>, usize) {
    let text = query.text.as_deref().unwrap_or_default().to_lowercase();
    let host = names::host(&text);
    let is_meant = |domain: &View<'_>| {
        let names = domain.list(&a::VIRTUAL_HOSTNAME);
        let mut names = names.into_iter().chain([domain.name()]);
        names.any(|name| name.to_lowercase().contains(&text) || names::host(name).contains(&host))
    };
    let mut matching: Vec<View<'_>> = system.domains().filter(is_meant).collect();
    matching.sort_by_key(|domain| domain.name());
    let limit = query.limit.unwrap_or(usize::MAX);
    let domain = |view: &View<'_>| Domain::new(system, store, view);
    if !query.faulty {
        return (
            matching.iter().take(limit).map(domain).collect(),
            matching.len().saturating_sub(limit),
        );
    }
    let is_faulty = |domain: &Domain| domain.problem.is_some() || !domain.uncovered.is_empty();
    let mut faulty: Vec<Domain> = matching.iter().map(domain).filter(is_faulty).collect();
    let more = faulty.len().saturating_sub(limit);
    faulty.truncate(limit);
    (faulty, more)
}

fn kept_in(config: &Config) -> String {
    match &config.directory.source {
        Source::Yaml(path) => format!("the file {}", path.display()),
        Source::Ldap(settings) => {
            let urls: Vec<String> = settings.urls.iter().map(ToString::to_string).collect();
            format!("LDAP, {}", urls.join(" "))
        }
    }
}

impl Domain {
    fn new(system: &System, store: &CertStore, domain: &View<'_>) -> Self {
        let own = store.of_domain(domain.name());
        let virtual_hosts: Vec<VirtualHostName> = domain
            .list(&a::VIRTUAL_HOSTNAME)
            .into_iter()
            .map(|name| VirtualHostName::new(system, store, domain.name(), own.as_ref(), name))
            .collect();
        let uncovered = virtual_hosts.iter().filter(|host| !host.covered);
        let target = domain.text(&a::DOMAIN_ALIAS_TARGET_ID);
        let alias_of = target.and_then(|id| system.domain_by_id(id));
        Self {
            name: domain.name().to_owned(),
            alias_of: alias_of.map(|target| target.name().to_owned()),
            uncovered: uncovered.map(|host| host.name.clone()).collect(),
            certificate: own.map(|pair| {
                let source = certificates::source(domain, &pair);
                Certificate::new(format!("domain {}", domain.name()), &pair, source)
            }),
            problem: store.fault_of(domain.name()).map(str::to_owned),
            virtual_hosts,
        }
    }
}

impl VirtualHostName {
    fn new(system: &System, store: &CertStore, domain: &str, own: Option<&Arc<CertKey>>, name: &str) -> Self {
        let shown = store.of_name(name);
        let is = |other: Option<&Arc<CertKey>>| shown.zip(other).is_some_and(|(one, other)| Arc::ptr_eq(one, other));
        let owner = system.domain_by_host(name).map(|owner| owner.name().to_owned());
        Self {
            name: name.to_owned(),
            shown: match shown {
                None => "none",
                Some(_) if is(own) => "own",
                Some(_) if is(store.default.as_ref()) => "default",
                Some(_) => "other",
            }
            .to_owned(),
            covered: shown.is_some_and(|pair| pair.uncovered([name]).is_empty()),
            taken_by: owner.filter(|owner| owner != domain),
        }
    }
}

/// The virtual host names to set.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewNames {
    /// All of them.
    pub virtual_hosts: Vec<String>,
    /// Those that the administrator saw before the change. With it, changes that others made meanwhile are kept.
    #[serde(default)]
    pub before: Option<Vec<String>>,
}

/// A certificate for a domain, as PEM.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCertificate {
    /// The certificate; its chain may follow.
    certificate: String,
    /// The rest of its chain.
    #[serde(default)]
    chain: Option<String>,
    /// Its private key, not encrypted; absent: the key already stored. It is never returned.
    #[serde(default, deserialize_with = "secret")]
    #[schema(value_type = Option<String>, write_only)]
    key: Option<Secret<String>>,
}

fn secret<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(input)?.map(Secret::new))
}

/// A domain after a change.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Changed {
    /// As in the configuration in force.
    pub domain: Domain,
    /// Whether the change is in force on this node. It is stored either way.
    pub in_force: bool,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Number of the configuration in force.
    pub generation: u64,
}

/// Sets the virtual host names of a domain in the directory. They take effect at once.
#[utoipa::path(put, path = "/v1/domains/{domain}/virtual-hosts", request_body = NewNames, params(
    ("domain" = String, Path, description = "Name of the domain"),
), responses(
    (status = 200, body = Changed),
    (status = 404, description = "There is no such domain", body = ApiError),
    (status = 409, description = "A name already belongs to another domain", body = ApiError),
    (status = 422, description = "A name is not a valid host name", body = ApiError),
    (status = 503, description = "The directory cannot be changed", body = ApiError),
))]
pub(crate) async fn set_virtual_hosts(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Extension(turns): Extension<Arc<Turns>>,
    Path(domain): Path<String>,
    Json(names): Json<NewNames>,
) -> Result<Json<Changed>, ApiError> {
    change(env, turns, caller, domain, names.changes()).await
}

impl NewNames {
    pub(super) fn changes(self) -> Vec<Change> {
        let change = |act| Change {
            attribute: a::VIRTUAL_HOSTNAME.name.to_owned(),
            act,
        };
        self.acts().into_iter().map(change).collect()
    }

    fn acts(self) -> Vec<Act> {
        let Self { virtual_hosts, before } = self;
        let Some(before) = before else {
            return vec![Act::Replace(virtual_hosts)];
        };
        let folded = |list: &[String]| -> HashSet<String> { list.iter().map(|name| names::host(name)).collect() };
        let (kept, known) = (folded(&virtual_hosts), folded(&before));
        let gone = before.iter().filter(|name| !kept.contains(&names::host(name)));
        let new = virtual_hosts.iter().filter(|name| !known.contains(&names::host(name)));
        let removed = gone.cloned().map(Act::Remove);
        removed.chain(new.cloned().map(Act::Add)).collect()
    }
}

/// Stores a certificate and its key for a domain in the directory. It is used from the next handshake on.
#[utoipa::path(put, path = "/v1/domains/{domain}/certificate", request_body = NewCertificate, params(
    ("domain" = String, Path, description = "Name of the domain"),
), responses(
    (status = 200, body = Changed),
    (status = 404, description = "There is no such domain", body = ApiError),
    (status = 413, description = "Certificate, chain and key are more than 64 KiB", body = ApiError),
    (status = 422, description = "Certificate or key cannot be used", body = ApiError),
    (status = 503, description = "The directory cannot be changed", body = ApiError),
))]
pub(crate) async fn set_certificate(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Extension(turns): Extension<Arc<Turns>>,
    Path(domain): Path<String>,
    body: Result<Json<NewCertificate>, JsonRejection>,
) -> Result<Json<Changed>, ApiError> {
    const SHAPE: &str = "the body is not {\"certificate\": PEM, \"chain\": PEM, \"key\": PEM}";
    let Json(new) = body.map_err(|rejection| unread(&rejection, SHAPE))?;
    change(env, turns, caller, domain, new.changes()?).await
}

/// The framework's error may quote the body, which may contain a key.
pub(super) fn unread(rejection: &JsonRejection, shape: &str) -> ApiError {
    match rejection {
        JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_) => ApiError::bad(shape),
        other => ApiError::new(other.status(), other.body_text()),
    }
}

impl NewCertificate {
    pub(super) fn changes(self) -> Result<Vec<Change>, ApiError> {
        let chain = self.chain.unwrap_or_default();
        if [&self.certificate, &chain].iter().any(|text| text.contains(PRIVATE)) {
            // There it would be shown to all who may see the domain.
            let message = "a private key stands among the certificates; it goes into its own place";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message));
        }
        let certificate = values::whole_lines(&format!("{}\n{chain}", self.certificate));
        let certificate = CertKey::in_order(&certificate).unwrap_or(certificate);
        let key = self.key.as_ref().map(|key| values::whole_lines(key.expose()));
        let key = key.map(|key| replace(&a::SSL_PRIVATE_KEY, Some(key)));
        let certificate = replace(&a::SSL_CERTIFICATE, Some(certificate.trim().to_owned() + "\n"));
        Ok([Some(certificate), key].into_iter().flatten().collect())
    }
}

/// Removes certificate and key of a domain from the directory. Its names get the default certificate at once.
#[utoipa::path(delete, path = "/v1/domains/{domain}/certificate", params(
    ("domain" = String, Path, description = "Name of the domain"),
), responses(
    (status = 200, body = Changed),
    (status = 404, description = "There is no such domain", body = ApiError),
    (status = 503, description = "The directory cannot be changed", body = ApiError),
))]
pub(crate) async fn remove_certificate(
    State(env): State<Arc<AdminEnv>>,
    Extension(caller): Extension<Caller>,
    Extension(turns): Extension<Arc<Turns>>,
    Path(domain): Path<String>,
) -> Result<Json<Changed>, ApiError> {
    let changes = [&a::SSL_CERTIFICATE, &a::SSL_PRIVATE_KEY].map(|attribute| replace(attribute, None));
    change(env, turns, caller, domain, changes.into()).await
}

/// Makes a change and waits until it is in force. Once begun, it goes on to its end, also when its client has gone.
async fn change(
    env: Arc<AdminEnv>,
    turns: Arc<Turns>,
    caller: Caller,
    domain: String,
    changes: Vec<Change>,
) -> Result<Json<Changed>, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        let message = format!("the change did not end: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    };
    let turn = turns
        .changes
        .clone()
        .acquire_owned()
        .await
        .map_err(|error| failed(&error))?;
    let task = tokio::spawn(async move {
        let _turn = turn;
        change_now(&env, caller, &domain, &changes).await
    });
    task.await.map_err(|error| failed(&error))?.map(Json)
}

async fn change_now(env: &Arc<AdminEnv>, caller: Caller, key: &str, changes: &[Change]) -> Result<Changed, ApiError> {
    let unavailable = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    let mut output = CommandOutput::default();
    let before = env
        .app
        .change_domain(key, changes, &mut output)
        .await
        .map_err(refusal)?;
    let what = describe(&before, &changed(&before, changes));
    act::audit(env, caller, format!("domain {}: {what}", before.name()));
    let mut warnings = output.into_lines();
    let in_force = env.app.domain_in_force(before.name(), changes).await;
    let in_force = in_force.map_err(|problems| {
        warnings.push("WARNING: it is stored, but this node does not see it yet where it reads".to_owned());
        warnings.extend(problems.iter().map(ToString::to_string));
    });
    let (snapshot, store) = (env.snapshot.load_full(), env.certificates());
    let domain = snapshot.system.domain(before.name()).ok_or_else(|| {
        unavailable(format!(
            "{} is stored, but this node does not know the domain yet",
            before.name()
        ))
    })?;
    Ok(Changed {
        domain: Domain::new(&snapshot.system, &store, &domain),
        in_force: in_force.is_ok(),
        warnings,
        generation: snapshot.generation,
    })
}

/// Why the directory, or the check of a change, refuses it.
pub(super) fn refusal(failure: provision::ProvisionError) -> ApiError {
    let (code, message) = match failure {
        provision::ProvisionError::Service { code, message } => (code, message),
        provision::ProvisionError::Usage(message) | provision::ProvisionError::Plain(message) => ("", message),
    };
    let status = match code {
        provision::NO_SUCH_DOMAIN => StatusCode::NOT_FOUND,
        provision::NAME_TAKEN => StatusCode::CONFLICT,
        provision::DENIED | provision::FAILED => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    ApiError::new(status, message)
}

/// The difference for the audit record, without certificates and keys.
fn describe(before: &Entry, after: &Entry) -> String {
    let hosts = a::VIRTUAL_HOSTNAME.name;
    let (old, new) = (values_of(before, hosts), values_of(after, hosts));
    let added = after.values(hosts).iter().filter(|name| !old.contains(name.as_str()));
    let gone = before.values(hosts).iter().filter(|name| !new.contains(name.as_str()));
    let added = added.map(|name| format!("+{name}"));
    let names: Vec<String> = added.chain(gone.map(|name| format!("-{name}"))).collect();
    let names = (!names.is_empty()).then(|| format!("virtual host names {}", names.join(" ")));
    let of = |attribute: &Attribute, what: &str| {
        let (old, new) = (before.first(attribute.name), after.first(attribute.name));
        let act = if new.is_some() { "stored" } else { "taken away" };
        (old != new).then(|| format!("{what} {act}"))
    };
    let certificate = of(&a::SSL_CERTIFICATE, "certificate");
    let parts = [names, certificate, of(&a::SSL_PRIVATE_KEY, "private key")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "nothing changed".to_owned(),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_that_others_changed_meanwhile_stay() {
        let mut entry = Entry::new("a.test");
        // b has been added since, and c taken away.
        entry.set("zimbraVirtualHostname", ["a", "b"]);
        let new = |virtual_hosts: &[&str], before: Option<&[&str]>| NewNames {
            virtual_hosts: list(virtual_hosts),
            before: before.map(list),
        };
        for (new, expected) in [
            (new(&["a", "c", "d"], Some(&["a", "c"])), vec!["a", "b", "d"]),
            (new(&["c"], Some(&["A", "c"])), vec!["b"]),
            (new(&["a", "c"], Some(&["a", "c"])), vec!["a", "b"]),
            (new(&["a", "c"], None), vec!["a", "c"]),
            (new(&[], None), vec![]),
        ] {
            let after = changed(&entry, &new.changes());
            assert_eq!(after.values("zimbraVirtualHostname"), expected);
        }
    }

    #[test]
    fn certificates_get_whole_lines_and_keys_their_own_place() {
        let new = |certificate: &str, chain: Option<&str>| NewCertificate {
            certificate: certificate.to_owned(),
            chain: chain.map(str::to_owned),
            key: None,
        };
        let leaf = "-----BEGIN CERTIFICATE-----\r\nAA==\r\n-----END CERTIFICATE-----";
        let changes = new(leaf, Some(&leaf.replace("AA", "BB"))).changes().unwrap();
        let Act::Replace(values) = &changes[0].act else {
            panic!()
        };
        let one = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        assert_eq!(values[0], one.to_owned() + &one.replace("AA", "BB"));
        assert_eq!(changes.len(), 1);
        let key = "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n";
        assert!(new(&(leaf.to_owned() + key), None).changes().is_err());
        assert!(new(leaf, Some(key)).changes().is_err());
    }

    #[test]
    fn the_description_of_a_change_holds_no_pem() {
        let (mut before, mut after) = (Entry::new("a.test"), Entry::new("a.test"));
        assert_eq!(describe(&before, &after), "nothing changed");
        before.set("zimbraVirtualHostname", ["a", "b"]);
        before.set("zimbraSSLCertificate", ["old"]);
        after.set("zimbraVirtualHostname", ["b", "c"]);
        after.set("zimbraSSLPrivateKey", ["secret"]);
        let expected = "virtual host names +c -a, certificate taken away, private key stored";
        assert_eq!(describe(&before, &after), expected);
    }
}
