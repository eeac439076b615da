//! Notifications to systemd: ready, reloading, stopping, alive. Without systemd they do nothing.
//!
//! The sockets that systemd has opened are listed here, too; `listen::sockets` takes them.

use std::os::fd::RawFd;
use std::time::Duration;

use sd_notify::NotifyState;

/// This process serves, and is the main process: after an upgrade the service is the new process.
pub(crate) fn serves(status: &str) {
    notify(&[
        NotifyState::Ready,
        NotifyState::MainPid(std::process::id()),
        NotifyState::Status(status),
    ]);
}

/// What was being read is in force, or refused. It does not name the main process: a process that has been replaced
/// may still reload.
pub(crate) fn reloaded(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read; [`reloaded`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!("no monotonic clock: {error}"),
    }
}

/// The process ends.
pub(crate) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Pings the watchdog as often as systemd wants (`WatchdogSec`), from the runtime of the listeners: when that one
/// hangs, the pings stop.
pub(crate) async fn say_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beat = tokio::time::interval((limit / 3).max(Duration::from_millis(1)));
    loop {
        beat.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// The sockets that systemd has opened for this process.
pub(crate) fn activated() -> Vec<RawFd> {
    match sd_notify::listen_fds() {
        Ok(fds) => fds.collect(),
        Err(error) => {
            log::error!("the sockets of systemd cannot be taken: {error}");
            Vec::new()
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd cannot be told: {error}");
    }
}
