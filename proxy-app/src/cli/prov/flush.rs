//! `flushCache`: has the running process purge routes, or read the directory now.

use hyper::Method;

use crate::admin::act::ReloadResult;
use crate::admin::route::{Forgotten, Purge};
use crate::cli::admin_client::AdminClient;
use crate::cli::prov::Prov;
use crate::provision::{CommandOutput, ProvisionError};

/// Types that mean routes here, and types that mean the rest of the directory.
const ROUTES: [&str; 3] = ["all", "account", "reverseproxylookup"];
const SYSTEM: [&str; 5] = ["all", "config", "cos", "domain", "server"];
/// What Carbonio can flush, too, and Portico does not keep.
const NOT_KEPT: [&str; 9] = [
    "acl",
    "galgroup",
    "globalgrant",
    "group",
    "license",
    "locale",
    "mime",
    "uistrings",
    "zimlet",
];

impl Prov {
    pub(super) async fn flush_cache(&mut self, words: &[String]) -> Result<CommandOutput, ProvisionError> {
        let types: Vec<String> = words[0]
            .split(',')
            .map(|word| word.trim().to_ascii_lowercase())
            .collect();
        let known = |word: &&String| {
            let word = word.as_str();
            ROUTES.contains(&word) || SYSTEM.contains(&word) || NOT_KEPT.contains(&word)
        };
        if let Some(word) = types.iter().find(|word| !known(word)) {
            return Err(ProvisionError::request(format!("invalid cache type {word}")));
        }
        if self.editor.rehearses() {
            let mut output = CommandOutput::default();
            output.warn("WARNING: dry run: nothing was flushed");
            return Ok(output);
        }
        let is_any = |list: &[&str]| types.iter().any(|word| list.contains(&word.as_str()));
        if is_any(&SYSTEM) {
            self.send::<ReloadResult>("/v1/reload", &()).await?;
        }
        if is_any(&ROUTES) {
            let logins = words[1..].to_vec();
            let all = logins.is_empty();
            self.send::<Forgotten>("/v1/routes/purge", &Purge { logins, all })
                .await?;
        }
        Ok(CommandOutput::default())
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ProvisionError> {
        let failed = |message: String| ProvisionError::service("service.FAILURE", format!("system failure: {message}"));
        let socket = self.socket.as_deref();
        let socket = socket.ok_or_else(|| failed("the node file names no admin.socket".to_owned()))?;
        let output = AdminClient::new(socket).send(Method::POST, path, body).await;
        output.map_err(|error| failed(format!("{error:#}")))
    }
}
