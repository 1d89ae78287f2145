//! What a trial boot must pass before it is committed.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::causes::one_line;
use crate::config;
use crate::scripts::{self, Ended, ScriptError, Surroundings};
use crate::system;
use crate::update::{Code, Failure};

/// Why the trial is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// A script was not run.
    #[error(transparent)]
    NotRun(#[from] ScriptError),
    /// A script said no.
    #[error("health check {name} ended with {status}{said}")]
    Script {
        /// Its file name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// A unit failed.
    #[error("unit {unit} has failed")]
    UnitFailed {
        /// Which.
        unit: String,
    },
    /// Time is over.
    #[error("{check} was not passed within {} s", limit.as_secs())]
    Late {
        /// What was waited for.
        check: String,
        /// All checks together.
        limit: Duration,
    },
}

impl From<HealthError> for Failure {
    fn from(error: HealthError) -> Self {
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message = format!("{message}: {source}");
        }
        Self::new(Code::HealthCheckFailed, message)
    }
}

/// Waits until every check is passed: the hub, then the units, then the scripts in name order.
///
/// # Errors
/// The first check that fails, or is not passed when `config.deadline` ends, which began at the uptime `since`.
pub async fn check(
    config: &config::Health,
    surroundings: Surroundings,
    since: Duration,
    online_before: bool,
    connected: watch::Receiver<bool>,
) -> Result<(), HealthError> {
    let until = since.saturating_add(config.deadline);
    let left = || until.saturating_sub(system::uptime());
    let late = |check: String| HealthError::Late { check, limit: config.deadline };
    if left().is_zero() {
        return Err(late("the trial".to_owned()));
    }
    let hub_matters = match config.hub {
        config::HubCheck::Always => true,
        config::HubCheck::IfOnlineBefore => online_before,
        config::HubCheck::Never => false,
    };
    if hub_matters {
        let reached = system::within(left(), reach_hub(connected)).await;
        reached.ok_or_else(|| late("the connection to the hub".to_owned()))?;
    }
    for unit in &config.units {
        let active = system::within(left(), reach_active(unit)).await;
        active.ok_or_else(|| late(format!("unit {unit}")))??;
    }
    for script in scripts::list(&config.scripts).await? {
        let ended = scripts::run(&script, &[], surroundings, left()).await.map_err(|error| match error {
            ScriptError::Late { .. } => late(format!("health check {}", scripts::name(&script))),
            error => error.into(),
        })?;
        if !ended.status.success() {
            return Err(said_no(&script, ended));
        }
    }
    Ok(())
}

async fn reach_hub(mut connected: watch::Receiver<bool>) {
    if connected.wait_for(|connected| *connected).await.is_err() {
        // Nobody will ever connect: the deadline decides.
        std::future::pending::<()>().await;
    }
}

async fn reach_active(unit: &str) -> Result<(), HealthError> {
    /// A unit takes seconds to start, and asking takes milliseconds.
    const ASK_AGAIN: Duration = Duration::from_secs(2);
    const LIMIT: Duration = Duration::from_secs(30);
    let command = ["systemctl", "is-active", "--", unit].map(str::to_owned);
    loop {
        // In a first boot the service manager may be too busy to answer.
        match system::output(&command, LIMIT).await {
            Ok(output) => match String::from_utf8_lossy(&output.stdout).trim() {
                "active" => return Ok(()),
                "failed" => return Err(HealthError::UnitFailed { unit: unit.to_owned() }),
                _ => {}
            },
            Err(error) => warn!("cannot ask systemd for unit {unit}: {}", one_line(&error)),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn said_no(script: &Path, ended: Ended) -> HealthError {
    let said = ended.said.map(|line| format!(": {line}")).unwrap_or_default();
    HealthError::Script { name: scripts::name(script), status: ended.status, said }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Bench {
        _directory: tempfile::TempDir,
        config: config::Health,
        connected: watch::Sender<bool>,
    }

    fn bench(scripts: &[(&str, &str)]) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        for (name, body) in scripts {
            let path = directory.path().join(name);
            crate::store::write_durably(&path, format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        }
        let config = config::Health {
            deadline: Duration::from_secs(20),
            hub: config::HubCheck::IfOnlineBefore,
            units: Vec::new(),
            scripts: directory.path().to_owned(),
        };
        Bench { _directory: directory, config, connected: watch::channel(false).0 }
    }

    async fn check_offline(bench: &Bench) -> Result<(), HealthError> {
        check(&bench.config, Surroundings::Ours, system::uptime(), false, bench.connected.subscribe()).await
    }

    /// Shows seapath/meta-seapath#287, #288.
    #[tokio::test]
    async fn scripts_that_succeed_are_passed() {
        assert!(check_offline(&bench(&[("10-a", "true"), ("20-b", "exit 0")])).await.is_ok());
    }

    /// Shows seapath/meta-seapath#287, #288.
    #[tokio::test]
    async fn the_first_script_that_fails_is_named_with_its_last_words() {
        let bench = bench(&[("10-a", "true"), ("20-b", "echo no sensor >&2; exit 3"), ("30-c", "exit 4")]);
        let failure = Failure::from(check_offline(&bench).await.unwrap_err());
        assert_eq!(failure.message, "health check 20-b ended with exit status: 3: no sensor");
    }

    /// Shows advancedtelematic/aktualizr#1422; seapath/meta-seapath#287, #288.
    #[tokio::test]
    async fn a_script_that_hangs_is_ended_by_the_deadline() {
        let mut bench = bench(&[("10-a", "sleep 1000")]);
        bench.config.deadline = Duration::from_secs(1);
        assert!(matches!(check_offline(&bench).await, Err(HealthError::Late { .. })));
    }

    /// Shows F15.
    #[tokio::test]
    async fn a_device_that_was_online_must_come_online_again() {
        let mut bench = bench(&[]);
        bench.config.deadline = Duration::from_secs(1);
        let offline =
            check(&bench.config, Surroundings::Ours, system::uptime(), true, bench.connected.subscribe())
                .await;
        assert!(matches!(offline, Err(HealthError::Late { .. })));
        bench.connected.send_replace(true);
        assert!(
            check(&bench.config, Surroundings::Ours, system::uptime(), true, bench.connected.subscribe())
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_deadline_that_ended_before_this_start_is_over() {
        let bench = bench(&[("10-a", "true")]);
        let since = system::uptime().saturating_sub(bench.config.deadline);
        let result =
            check(&bench.config, Surroundings::Ours, since, false, bench.connected.subscribe()).await;
        assert!(matches!(result, Err(HealthError::Late { .. })));
    }

    #[tokio::test]
    async fn no_directory_means_no_scripts() {
        let mut bench = bench(&[]);
        bench.config.scripts = "/nonexistent".into();
        assert!(check_offline(&bench).await.is_ok());
    }
}
