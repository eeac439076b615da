//! What changes in a running node: the node file and the directory are read again, and what is valid is put in force.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mail_directory::yaml::{Problems, problem};
use mail_directory::{Apply, Losses, System};
use mail_proxy::audit::{Event, Record};

use crate::app::plan::{addresses, check_certificates, check_logs, listeners};
use crate::app::snapshot::{self, Snapshot};
use crate::app::state_file::{LearnedServers, NodeState};
use crate::app::{App, changes, group_inputs, routes};
use crate::config::{self, Config, Listener};
use crate::node::memory;
use crate::node::{logs, systemd};
use crate::tls::certificate_store::CertStore;

impl App {
    /// Reads the node file, the directory, the certificates and the locations again and runs what they say now. What
    /// cannot be used changes nothing, and neither does a directory that has lost more than `losses`. Once begun, it
    /// goes on to its end, also when its caller has gone.
    pub(crate) async fn reload(self: &Arc<Self>, losses: Losses) -> Reloaded {
        let one = self.reloading.clone().lock_owned().await;
        let app = self.clone();
        let task = tokio::spawn(async move {
            let _one = one;
            app.reload_now(losses).await
        });
        result_of(task).await
    }

    async fn reload_now(self: &Arc<Self>, losses: Losses) -> Reloaded {
        systemd::reloading();
        let before = self.config.load_full();
        let (config, mut reloaded) = {
            let before = before.clone();
            self.off_the_runtime(move |app| app.node_file_now(&before)).await
        };
        let (access, audit) = (config.log.access.clone(), config.log.audit.clone());
        let old = self.snapshot.load().generation;
        self.adopt_all(&config, losses, &mut reloaded).await;
        reloaded.changes = self.history.since(old);
        let locations = self.off_the_runtime(|app| app.reload_locations("reloaded")).await;
        reloaded.problems.extend(locations.err().unwrap_or_default());
        let logs = self.off_the_runtime(move |app| app.reopen_logs(&access, &audit)).await;
        reloaded.problems.extend(logs);
        reloaded.problems.extend(self.listeners.settled().await);
        let trust = self.off_the_runtime(move |app| app.renew_lookup_trust(&config)).await;
        reloaded.problems.extend(trust);
        // An account may have moved.
        self.routes.ask_anew();
        // And what an authority has refused may have been mended.
        self.care.forget_failures();
        self.configured.notify_one();
        self.tickets.change();
        reloaded.log();
        systemd::reloaded("serving");
        reloaded
    }

    /// Looks at the directory now, because it was changed from here, and runs what it says.
    ///
    /// # Errors
    /// It cannot be read or used; then everything stays as it was.
    pub(crate) async fn look_at_directory(self: &Arc<Self>) -> Result<(), Problems> {
        let app = self.clone();
        let apply: Arc<Apply> = Arc::new(move |system: &Arc<System>| {
            // Where the change is not visible yet, the look is repeated often, and finds no difference.
            match Arc::ptr_eq(system, &app.snapshot.load().system) {
                true => Ok(()),
                false => app.adopt(None, Some(system), "changed over the admin API"),
            }
        });
        self.directory.clone().refresh(apply, Losses::Few).await
    }

    /// Reads files and checks certificates off the runtime, whose threads serve clients.
    pub(super) async fn off_the_runtime<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let app = self.clone();
        result_of(tokio::task::spawn_blocking(move || work(&app))).await
    }

    /// What the node file says now, as far as this process can take it over; what it said previously, if it is not
    /// valid.
    fn node_file_now(&self, before: &Arc<Config>) -> (Arc<Config>, Reloaded) {
        let (path, started) = &self.node_file;
        let mut reloaded = Reloaded::default();
        let config = match Config::load(path) {
            Ok((new, warnings)) => {
                reloaded.problems.extend(warnings);
                (_, reloaded.needs_upgrade) = config::changes(started, &new.written);
                let new = before.reloaded(&new);
                let mut problems = Problems::new();
                check_logs(&new, &mut problems);
                let usable = !problems.has_errors();
                reloaded.problems.extend(problems);
                if usable { Arc::new(new) } else { before.clone() }
            }
            Err(problems) => {
                reloaded.problems.extend(problems);
                before.clone()
            }
        };
        (config, reloaded)
    }

    /// Puts node file and directory in force, or neither.
    async fn adopt_all(self: &Arc<Self>, config: &Arc<Config>, losses: Losses, reloaded: &mut Reloaded) {
        let apply: Arc<Apply> = {
            let (app, config) = (self.clone(), config.clone());
            Arc::new(move |system: &Arc<System>| app.adopt(Some(&config), Some(system), "reloaded"))
        };
        let Err(problems) = self.directory.clone().refresh(apply, losses).await else {
            return;
        };
        reloaded.problems.extend(problems);
        // The directory cannot be read, or the node file does not fit it. The node file may fit the last good reading
        // of the directory.
        let adopted = {
            let config = config.clone();
            self.off_the_runtime(move |app| app.adopt(Some(&config), None, "reloaded"))
                .await
        };
        for problem in adopted.err().unwrap_or_default() {
            if !reloaded.problems.iter().any(|known| *known == problem) {
                reloaded.problems.push(problem);
            }
        }
    }

    /// Opens the log files again at their paths; returns those that cannot be opened.
    pub(crate) async fn reopen(self: &Arc<Self>) -> Problems {
        self.off_the_runtime(Self::reopen_now).await
    }

    fn reopen_now(&self) -> Problems {
        let config = self.config.load();
        self.reopen_logs(&config.log.access, &config.log.audit)
    }

    /// Reads the authorities of lookup services again: they may have changed.
    fn renew_lookup_trust(&self, config: &Config) -> Problems {
        let mut problems = Problems::new();
        let Some(trust) = &self.lookup_trust else {
            return problems;
        };
        match routes::trust(config) {
            Ok(new) => new.into_iter().for_each(|new| trust.store(new)),
            Err(error) => problems.push(problem("directory.lookup.ca_file", error)),
        }
        problems
    }

    /// Opens the log files again: they may have been renamed or replaced.
    fn reopen_logs(&self, access: &logs::LogTarget, audit: &logs::LogTarget) -> Problems {
        let mut problems = Problems::new();
        for (log, target, key) in [
            (&self.access, access, "log.access"),
            (&self.audit_log, audit, "log.audit"),
        ] {
            if let Err(error) = log.reopen(target) {
                let message = format!("{target:?} cannot be opened: {error}; the previous file is still written");
                problems.push(problem(key, message));
            }
        }
        problems
    }

    /// Follows the directory, until it is dropped: its system, and the accounts that change. Keeps routes up to date.
    pub(crate) async fn follow_directory(self: Arc<Self>) {
        let app = self.clone();
        let apply: Arc<Apply> =
            Arc::new(move |system: &Arc<System>| app.adopt(None, Some(system), "the directory changed"));
        let poll = self.config.load().directory.poll;
        let watch = self.directory.clone().watch(poll, apply);
        tokio::join!(
            watch,
            self.routes.follow_directory(),
            self.routes.clone().keep_fresh(),
            self.end_moved_sessions(),
            self.follow_locations(),
            self.follow_revocation_lists()
        );
    }

    /// Takes changes of the files of locations over as they come.
    async fn follow_locations(self: &Arc<Self>) {
        let look = |app: &Self| match app.locations.has_changed() {
            true => app.reload_locations("the locations changed"),
            false => Ok(()),
        };
        loop {
            tokio::time::sleep(self.config.load().directory.poll).await;
            if let Err(problems) = self.off_the_runtime(look).await {
                log_list(&problems);
                log::error!("the locations cannot be read; the previous ones stay in force");
            }
        }
    }

    /// Takes over other lists of revoked certificates as they come, and tells of one that comes to its end.
    async fn follow_revocation_lists(self: &Arc<Self>) {
        let look = |app: &Self| {
            let path = app.config.load().tls.client_crl_file.clone();
            match app.snapshot.load().revoked.are_current(path.as_deref()) {
                true => Ok(()),
                false => app.adopt(None, None, "the lists of revoked certificates changed"),
            }
        };
        let mut over = self.snapshot.load().revoked.over();
        loop {
            tokio::time::sleep(self.config.load().directory.poll).await;
            if let Err(problems) = self.off_the_runtime(look).await {
                log_list(&problems);
            }
            let before = std::mem::replace(&mut over, self.snapshot.load().revoked.over());
            for issuer in over.difference(&before) {
                log::error!("tls.client_crl_file: {}", snapshot::is_over(issuer));
            }
        }
    }

    fn reload_locations(&self, why: &str) -> Result<(), Problems> {
        // Changes are made one after the other.
        let _guard = self.reported.lock();
        let (config, snapshot) = (self.config.load_full(), self.snapshot.load());
        let warnings = self.locations.reload(&config.web.locations, &snapshot.system)?;
        self.groups
            .adopt(group_inputs(&config, &snapshot), &self.locations.written().groups);
        log_list(&warnings);
        log::info!(
            "{} locations are in force ({why})",
            self.locations.table().entries().len()
        );
        Ok(())
    }

    /// Runs what this node file and this system say; nothing is replaced before all of it is known to be valid. `None`:
    /// the one that is in force.
    fn adopt(&self, config: Option<&Arc<Config>>, system: Option<&Arc<System>>, why: &str) -> Result<(), Problems> {
        // One after the other: each has its number, and must compare with what is in force when its turn comes.
        let mut reported = self.reported.lock();
        let before = self.snapshot.load_full();
        let config = &config.map_or_else(|| self.config.load_full(), Arc::clone);
        let system = system.unwrap_or(&before.system);
        let mut would = self.would_run(config, system, &before)?;
        if self.replaced.load(Ordering::Relaxed) {
            would.snapshot.generation = before.generation;
        }
        report_new(&mut reported, &would.warnings);
        let changes = self.changes(config, &before, system, &would.certificates);
        self.locations.adopt(system);
        let group_inputs = group_inputs(config, &would.snapshot);
        self.groups.adopt(group_inputs, &self.locations.written().groups);
        self.throttle.change(would.snapshot.throttle.clone());
        if !Arc::ptr_eq(config, &self.config.load_full()) {
            self.set_policy(config);
        }
        // One behind the other: the rules of handshakes are compared with those of requests.
        self.certificates.store(Arc::new(would.certificates));
        self.snapshot.store(Arc::new(would.snapshot));
        self.certificates.load().forget_old_rules();
        self.routes.set_lives(config.route_cache.ttl, config.route_cache.stale);
        self.limits.change(config.limits.clone());
        self.config.store(config.clone());
        self.dns.never(addresses(&would.listeners));
        self.listeners.set(would.listeners);
        self.applied(why, changes);
        Ok(())
    }

    /// What this node file and this system say, as it would run after `before`; nothing of it runs.
    pub(super) fn would_run(
        &self,
        config: &Config,
        system: &Arc<System>,
        before: &Snapshot,
    ) -> Result<WouldRun, Problems> {
        let built = snapshot::build(
            config,
            system.clone(),
            self.dns.clone(),
            &self.certificates,
            Some(before),
        )?;
        let mut problems = built.warnings;
        let listeners = listeners(config, system);
        check_certificates(&listeners, &built.certificates, &mut problems);
        let ((), warnings) = problems.or(())?;
        Ok(WouldRun {
            snapshot: built.snapshot,
            certificates: built.certificates,
            listeners,
            warnings,
        })
    }

    /// The differences from what is in force, once these are.
    fn changes(&self, config: &Config, before: &Snapshot, system: &System, certificates: &CertStore) -> Vec<String> {
        let (live, _) = config::changes(&self.config.load().written, &config.written);
        let node_file = live.iter().map(|key| format!("node file: {key} is in force"));
        node_file
            .chain(changes::of_systems(&before.system, system))
            .chain(changes::of_certificates(&self.certificates.load(), certificates))
            .collect()
    }

    pub(crate) fn applied(&self, why: &str, changes: Vec<String>) {
        let generation = self.snapshot.load().generation;
        self.configured.notify_one();
        if self.replaced.load(Ordering::Relaxed) {
            // The numbers go on in the new process, and the audit log has one of each.
            return log::info!("the sessions that are left here follow the configuration ({why})");
        }
        log::info!("configuration {generation} is in force ({why})");
        for change in self.history.begin(generation, why, changes).changes {
            log::info!(target: "proxy_app::list", "{change}");
        }
        self.audit.record(Record {
            event: Some(Event::Config),
            why: Some(why.to_owned()),
            generation,
            ..Record::default()
        });
        self.write_state();
        // Both the reading and what was in force before took memory.
        memory::give_back_soon();
    }

    fn write_state(&self) {
        let servers = LearnedServers::of(&self.snapshot.load().mail);
        let (generations, holds) = (self.history.all(), self.routes.holds().all());
        let state = NodeState::of(&generations, &holds, self.moves.unfinished(), servers);
        self.state_file.write(&state);
    }

    /// Keeps for the next process what has changed. Once begun, it goes on to its end.
    pub(crate) async fn keep_state(self: &Arc<Self>) {
        self.off_the_runtime(Self::write_state).await;
    }

    /// Whether another process keeps what the next one is to know, and the last good reading of the directory. This one
    /// goes on to follow the directory for the sessions that it has.
    pub(crate) fn leave_files(&self, to_another: bool) {
        self.state_file.leave(to_another);
        self.directory.leave_keeping(to_another);
    }

    /// Another process has taken over, and counts the configurations from now on.
    pub(crate) fn is_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Takes over what the previous process has held meanwhile, and the moves that it has left.
    pub(crate) fn take_holds_again(&self) {
        let state = self.state_file.read();
        self.take_holds(&state);
        self.take_servers(&state);
        self.moves.take_over(state.moves());
    }

    /// What mailbox servers have said to a previous process.
    fn take_servers(&self, state: &NodeState) {
        state.servers().tell(&self.snapshot.load().mail);
    }

    /// Holds that a previous process has begun.
    pub(super) fn take_holds(&self, state: &NodeState) {
        self.routes.holds().replace(state.holds());
    }
}

/// A configuration that has been checked as a whole and does not run yet.
pub(super) struct WouldRun {
    pub(super) snapshot: Snapshot,
    pub(super) certificates: CertStore,
    pub(super) listeners: Vec<Listener>,
    pub(super) warnings: Problems,
}

/// The result of a task. A panic in it becomes a panic here; a task that is dropped ends with the runtime, and so does
/// this.
async fn result_of<T>(task: tokio::task::JoinHandle<T>) -> T {
    match task.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => std::future::pending().await,
    }
}

/// The result of a reload.
#[derive(Debug, Default)]
pub(crate) struct Reloaded {
    /// The changes, one sentence each.
    pub changes: Vec<String>,
    /// Keys of the node file whose new values need a new process.
    pub needs_upgrade: Vec<String>,
    /// The problems. What has an error changes nothing.
    pub problems: Problems,
}

impl Reloaded {
    pub(crate) fn log(&self) {
        log_list(&self.problems);
        if !self.needs_upgrade.is_empty() {
            log::warn!("node file: needs an upgrade: {}", self.needs_upgrade.join(", "));
        }
        if self.problems.has_errors() {
            log::error!("not everything could be read again; what cannot be used changes nothing");
        }
    }
}

/// Each problem on a line of its own.
fn log_list(problems: &Problems) {
    for problem in problems.iter() {
        log::warn!(target: "proxy_app::list", "{problem}");
    }
}

/// Changes may come every few seconds; a problem that is known from the previous one is not logged again.
fn report_new(reported: &mut BTreeSet<String>, problems: &Problems) {
    let texts: BTreeSet<String> = problems.iter().map(ToString::to_string).collect();
    texts
        .difference(reported)
        .for_each(|text| log::warn!(target: "proxy_app::list", "{text}"));
    *reported = texts;
}
