//! The throttle of this node: its settings from node file and directory, and what it remembers in a file.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mail_directory::View;
use mail_directory::attributes::{self as a, Attribute};
use mail_directory::yaml::{Problem, Problems, warning};
use mail_proxy::throttle::{Rule, RuleSettings, Throttle, ThrottleSettings};

use crate::app::App;
use crate::config::ThrottleConfig;

/// How often what is remembered is written, besides at the end. A process that is killed loses no more than this.
const KEEP_EVERY: Duration = Duration::from_secs(5 * 60);
/// The largest file that is read: that of full tables has 48 MiB.
const MOST: u64 = 96 << 20;

/// Zimbra's limits on one address, with the time in which they count.
static OF_ADDRESS: [(&Attribute, &Attribute); 3] = [
    (&a::REVERSE_PROXY_IP_LOGIN_LIMIT, &a::REVERSE_PROXY_IP_LOGIN_LIMIT_TIME),
    (
        &a::REVERSE_PROXY_IP_LOGIN_IMAP_LIMIT,
        &a::REVERSE_PROXY_IP_LOGIN_IMAP_LIMIT_TIME,
    ),
    (
        &a::REVERSE_PROXY_IP_LOGIN_POP3_LIMIT,
        &a::REVERSE_PROXY_IP_LOGIN_POP3_LIMIT_TIME,
    ),
];
/// The same on one account.
static OF_ACCOUNT: [(&Attribute, &Attribute); 1] = [(
    &a::REVERSE_PROXY_USER_LOGIN_LIMIT,
    &a::REVERSE_PROXY_USER_LOGIN_LIMIT_TIME,
)];

/// The settings of the node file, with what the directory adds.
pub(crate) fn settings(config: &ThrottleConfig, node: &View<'_>, problems: &mut Problems) -> ThrottleSettings {
    let mut settings = config.settings.clone();
    for (rule, limits) in [(Rule::Address, &OF_ADDRESS[..]), (Rule::Account, &OF_ACCOUNT[..])] {
        let is_written = config.written.contains(&rule);
        if let Some((attribute, limit, window)) = smallest(limits, node) {
            problems.push(limit_warning(attribute, rule, is_written));
            if !is_written {
                limit_rule(settings.rule_mut(rule), limit, window);
            }
        }
    }
    settings
        .allow
        .extend(node.networks(&a::REVERSE_PROXY_IP_THROTTLE_WHITELIST));
    for (message, attribute) in [
        (&mut settings.address_message, &a::REVERSE_PROXY_IP_THROTTLE_MSG),
        (&mut settings.account_message, &a::REVERSE_PROXY_USER_THROTTLE_MSG),
    ] {
        if let Some(text) = node.text(attribute).filter(|text| !text.trim().is_empty()) {
            text.clone_into(message);
        }
    }
    settings
}

/// The smallest of the limits that are set. All protocols count together here.
fn smallest<'a>(limits: &'a [(&Attribute, &Attribute)], node: &View<'_>) -> Option<(&'a Attribute, u32, Duration)> {
    let set = limits.iter().filter_map(|(limit, time)| {
        let count = u32::try_from(node.number(limit)).unwrap_or(u32::MAX);
        let window = node.duration(time).max(Duration::from_secs(1));
        (count > 0).then_some((*limit, count, window))
    });
    set.min_by_key(|(_, count, _)| *count)
}

fn limit_rule(rule: &mut RuleSettings, limit: u32, window: Duration) {
    rule.delay_from = rule.delay_from.min(limit.div_ceil(3));
    (rule.refuse_from, rule.window) = (limit, window);
}

fn limit_warning(attribute: &Attribute, rule: Rule, is_written: bool) -> Problem {
    let rule = rule.name();
    let message = match is_written {
        true => format!("has no effect, because the node file has limits of its own in throttle.{rule}"),
        false => format!(
            "counts failed logins of all protocols here, not connections or logins: it is the limit of throttle.{rule} \
             (docs/throttle.md)"
        ),
    };
    warning(attribute.name.to_owned(), message)
}

/// Remembers what a file says, if there is one.
pub(crate) fn restore(throttle: &Throttle, file: &Path) {
    let kept = match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Ok(known) if known.len() > MOST => Err(std::io::Error::other("it is too large")),
        Ok(_) => std::fs::read(file),
        Err(error) => Err(error),
    };
    let kept = kept.map_err(anyhow::Error::from);
    if let Err(error) = kept.and_then(|kept| Ok(throttle.restore(&kept)?)) {
        log::warn!(
            "{}: what was known of failed logins is not used: {error}",
            file.display()
        );
    }
}

/// When the file was written; where there is none, long ago.
pub(crate) fn written(file: Option<&Path>) -> SystemTime {
    let known = file.and_then(|file| std::fs::metadata(file).ok()?.modified().ok());
    known.unwrap_or(SystemTime::UNIX_EPOCH)
}

impl App {
    /// Writes what is known of failed logins to its file, again and again, until it is dropped.
    pub(crate) async fn keep_throttle(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            self.keep_throttle_now().await;
        }
    }

    /// What the previous process has written for this one, last of all; returns when it was written.
    pub(crate) async fn take_throttle_again(self: &Arc<Self>) -> SystemTime {
        let app = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let file = app.config.load().throttle.file.clone();
            file.iter().for_each(|file| restore(&app.throttle, file));
            written(file.as_deref())
        });
        task.await.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Writes it now, if the node file names a file.
    pub(crate) async fn keep_throttle_now(self: &Arc<Self>) {
        let app = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let Some(file) = app.config.load().throttle.file.clone() else {
                return;
            };
            if let Err(error) = write(&file, &app.throttle.kept()) {
                log::warn!(
                    "{}: what is known of failed logins cannot be kept: {error}",
                    file.display()
                );
            }
        });
        let _it_has_logged_why = task.await;
    }
}

/// Writes a file whole or not at all; no other user may read it.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = file.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut new = options.open(&beside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use mail_directory::{Entry, System};

    use super::*;

    fn settings_of(config: &ThrottleConfig, values: &[(&str, &str)]) -> (ThrottleSettings, Vec<String>) {
        let mut global = Entry::new("config");
        values.iter().for_each(|(name, value)| global.set(name, [*value]));
        let system = System::new(global, [], [], []);
        let mut problems = Problems::new();
        let settings = settings(config, &system.node("node.test"), &mut problems);
        (settings, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn limits_of_the_directory_count_failures() {
        let (plain, problems) = settings_of(&ThrottleConfig::default(), &[("zimbraReverseProxyIPLoginLimit", "0")]);
        assert_eq!((plain, problems.len()), (ThrottleSettings::default(), 0));
        let values = [
            ("zimbraReverseProxyIPLoginLimit", "20"),
            ("zimbraReverseProxyIPLoginPop3Limit", "9"),
            ("zimbraReverseProxyIPLoginPop3LimitTime", "60"),
            ("zimbraReverseProxyUserLoginLimit", "100"),
            ("zimbraReverseProxyIPThrottleWhitelist", "192.0.2.0/24"),
            ("zimbraReverseProxyIpThrottleMsg", "Not from there"),
        ];
        let (settings, problems) = settings_of(&ThrottleConfig::default(), &values);
        let limits = |rule| {
            let rule = settings.rule(rule);
            (rule.delay_from, rule.refuse_from, rule.window.as_secs())
        };
        assert_eq!(
            (limits(Rule::Address), limits(Rule::Account)),
            ((3, 9, 60), (20, 100, 3_600))
        );
        assert_eq!(settings.message(Rule::Spray), "Not from there");
        assert_eq!((settings.allow.len(), problems.len()), (1, 2), "{problems:?}");
        assert!(
            problems[0].contains("counts failed logins of all protocols"),
            "{problems:?}"
        );
        // The node file wins.
        let config = ThrottleConfig {
            written: vec![Rule::Address],
            ..ThrottleConfig::default()
        };
        let (settings, problems) = settings_of(&config, &values);
        assert_eq!(
            settings.rule(Rule::Address),
            ThrottleSettings::default().rule(Rule::Address)
        );
        assert!(problems[0].contains("has no effect"), "{problems:?}");
    }

    #[test]
    fn the_file_is_whole_and_for_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("throttle");
        let throttle = Throttle::new(ThrottleSettings::default());
        restore(&throttle, &file);
        write(&file, &throttle.kept()).unwrap();
        write(&file, &throttle.kept()).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        restore(&throttle, &file);
        std::fs::write(&file, "something else").unwrap();
        restore(&throttle, &file);
    }
}
