//! Pingora's own keys, at the top of the node file.

use mail_directory::yaml::Mapping;
use pingora::server::configuration::ServerConf;

use super::read::ConfigReader;

/// Pingora's own keys that the file has, each known to be valid.
#[derive(Debug, Clone, Default)]
pub(crate) struct PingoraConfig(serde_yaml::Mapping);

impl PingoraConfig {
    /// Pingora's configuration, with its own default for each key that is not written.
    pub(crate) fn to_conf(&self) -> ServerConf {
        serde_yaml::from_value(self.0.clone().into()).unwrap_or_default()
    }
}

impl ConfigReader {
    /// All of Pingora's own keys, in the version at hand.
    pub(super) fn server(&mut self, root: &mut Mapping<'_>) -> PingoraConfig {
        let known = serde_yaml::to_value(ServerConf::default()).unwrap_or_default();
        let mut chosen = serde_yaml::Mapping::new();
        for key in known
            .as_mapping()
            .into_iter()
            .flat_map(|m| m.keys())
            .filter_map(|key| key.as_str())
        {
            let Some(node) = root.take(key) else { continue };
            let mut alone = serde_yaml::Mapping::new();
            alone.insert(key.into(), node.to_value());
            match serde_yaml::from_value::<ServerConf>(alone.into()) {
                Ok(_) => drop(chosen.insert(key.into(), node.to_value())),
                Err(error) => node.error(error.to_string(), &mut self.problems),
            }
        }
        PingoraConfig(chosen)
    }
}
