//! `throttle`: what becomes of clients whose logins fail too often. The values are defined beside the model that uses
//! them, in `mail_proxy::throttle`.

use std::path::PathBuf;
use std::time::Duration;

use mail_directory::yaml::Mapping;
use mail_proxy::throttle::{Mode, Rule, RuleSettings, ThrottleSettings};

use super::LiveKey;
use super::policy::PolicyConfig;
use super::read::ConfigReader;

pub(super) const LIVE: [LiveKey; 1] = [("throttle", |now, new| now.throttle.clone_from(&new.throttle))];

/// The shortest window: a tick of the model is a quarter of a second.
const SHORTEST: Duration = Duration::from_secs(1);

/// `throttle`
#[derive(Debug, Clone, Default)]
pub(crate) struct ThrottleConfig {
    /// The rules, and who is let through.
    pub settings: ThrottleSettings,
    /// Rules whose limits the node file names: the directory does not change them.
    pub written: Vec<Rule>,
    /// Where what is remembered is kept over a restart.
    pub file: Option<PathBuf>,
    /// Another service that has a word on logins.
    pub policy: Option<PolicyConfig>,
}

impl ConfigReader {
    pub(super) fn throttle(&mut self, root: &mut Mapping<'_>) -> ThrottleConfig {
        let mut config = ThrottleConfig::default();
        let Some(mut section) = self.section(root, "throttle") else {
            return config;
        };
        let settings = &mut config.settings;
        if let Some(mode) = self.throttle_mode(&mut section) {
            settings.rules.iter_mut().for_each(|rule| rule.mode = mode);
        }
        for rule in Rule::ALL {
            if let Some(of_rule) = self.section(&mut section, rule.name())
                && self.throttle_rule(of_rule, settings.rule_mut(rule))
            {
                config.written.push(rule);
            }
        }
        self.duration(&mut section, "known_for", &mut settings.known_for);
        self.duration(&mut section, "max_delay", &mut settings.max_delay);
        if let Some(count) = section
            .take("max_waiting")
            .and_then(|node| node.u32(&mut self.problems))
        {
            settings.max_waiting = count as usize;
        }
        if let Some(networks) = section.take("allow").and_then(|node| node.networks(&mut self.problems)) {
            settings.allow = networks;
        }
        config.policy = self.policy(&mut section);
        config.file = section.take("file").and_then(|node| node.path_buf(&mut self.problems));
        section.finish(&mut self.problems);
        config
    }

    pub(super) fn throttle_mode(&mut self, section: &mut Mapping<'_>) -> Option<Mode> {
        let modes = [Mode::Off, Mode::DryRun, Mode::On].map(|mode| (mode.name(), mode));
        section
            .take("mode")
            .and_then(|node| node.choice(&modes, &mut self.problems))
    }

    /// Returns whether it names a limit.
    fn throttle_rule(&mut self, mut section: Mapping<'_>, rule: &mut RuleSettings) -> bool {
        let mut is_named = false;
        if let Some(mode) = self.throttle_mode(&mut section) {
            rule.mode = mode;
        }
        for (key, limit) in [
            ("delay_from", &mut rule.delay_from),
            ("refuse_from", &mut rule.refuse_from),
        ] {
            if let Some(count) = section.take(key).and_then(|node| node.u32(&mut self.problems)) {
                *limit = count;
                is_named = true;
            }
        }
        if let Some(node) = section.take("window") {
            match node.duration(&mut self.problems) {
                Some(window) if window < SHORTEST => {
                    node.error("a window has at least a second", &mut self.problems);
                }
                Some(window) => (rule.window, is_named) = (window, true),
                None => {}
            }
        }
        section.finish(&mut self.problems);
        is_named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load;

    #[test]
    fn rules_have_limits_and_modes_of_their_own() {
        use Mode::{DryRun, Off, On};
        let (config, _) = load(concat!(
            "throttle:\n",
            "  mode: dry_run\n",
            "  pair: {mode: on, refuse_from: 5, window: 1h}\n",
            "  spray: {mode: off}\n",
            "  known_for: 7d\n",
            "  allow: [192.0.2.0/24]\n",
        ))
        .unwrap();
        let ThrottleConfig { settings, written, .. } = config.throttle;
        let pair = settings.rule(Rule::Pair);
        assert_eq!(
            (pair.mode, pair.delay_from, pair.refuse_from, pair.window.as_secs()),
            (On, 4, 5, 3_600)
        );
        let modes = settings.rules.map(|rule| rule.mode);
        assert_eq!(modes, [On, DryRun, DryRun, DryRun, Off, DryRun]);
        assert_eq!((written, settings.allow.len()), (vec![Rule::Pair], 1));
        for (wrong, key) in [
            ("{mode: perhaps}", "throttle.mode"),
            ("{pair: {window: 10ms}}", "throttle.pair.window"),
            ("{pairs: {}}", "throttle.pairs"),
            ("{many: {refuse: 1}}", "throttle.many.refuse"),
        ] {
            let problems = load(&format!("throttle: {wrong}\n")).unwrap_err();
            assert!(problems[0].contains(key), "{wrong}: {problems:?}");
        }
    }
}
