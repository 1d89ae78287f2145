//! Hooks: programs of the people who run the device, at the points of an update where they have a say.
//! `config/hooks.d/README` tells those people what is promised here.

use std::path::Path;

use tracing::{debug, info, warn};

use crate::causes::one_line;
use crate::config;
use crate::redact;
use crate::scripts::{self, Ended, ScriptError, Surroundings};
use crate::update::{Hook, HookRun, Slot, Verdict};

/// `EX_TEMPFAIL` of sysexits.h.
const LATER: i32 = 75;

/// Runs the hooks of a point in name order. Before the boot loader is told, the first that does not let go on
/// decides. Afterwards all are run, whatever each says.
pub async fn run(config: &config::Hooks, surroundings: Surroundings, run: &HookRun, booted: Slot) -> Verdict {
    let hook = run.hook;
    let listed = scripts::list(&config.directory.join(hook.to_string())).await;
    let scripts = match listed {
        Ok(scripts) => scripts,
        Err(error) => return told(run, Verdict::Refuse(one_line(&error))),
    };
    let environment = environment(run, booted);
    for script in scripts {
        let ended = scripts::run(&script, &environment, surroundings, config.limit).await;
        let verdict = told(run, verdict(hook, &script, ended));
        if hook.decides() && verdict != Verdict::GoOn {
            return verdict;
        }
    }
    Verdict::GoOn
}

fn verdict(hook: Hook, script: &Path, ended: Result<Ended, ScriptError>) -> Verdict {
    let name = scripts::name(script);
    match ended {
        Err(error) => Verdict::Refuse(format!("{hook} hook: {}", one_line(&error))),
        Ok(Ended { status, said }) => {
            let said = said.map(|line| format!(": {line}")).unwrap_or_default();
            match status.code() {
                Some(0) => Verdict::GoOn,
                Some(LATER) => Verdict::Later(format!("{hook} hook {name}{said}")),
                _ => Verdict::Refuse(format!("{hook} hook {name} ended with {status}{said}")),
            }
        }
    }
}

fn told(run: &HookRun, verdict: Verdict) -> Verdict {
    let id = run.update.request.id.as_str();
    match &verdict {
        Verdict::GoOn => info!(UPDATE_ID = id, "update {id}: a {} hook has run", run.hook),
        // Each minute, perhaps for a day: the agent tells when the reason is a new one.
        Verdict::Later(why) => debug!(UPDATE_ID = id, "update {id}: {why}"),
        Verdict::Refuse(why) => warn!(UPDATE_ID = id, "update {id}: {why}"),
    }
    verdict
}

/// What is promised to hooks. Nothing secret: an address is without its query.
fn environment(run: &HookRun, booted: Slot) -> Vec<(&'static str, String)> {
    let request = &run.update.request;
    let version = |version: &Option<String>| version.clone().unwrap_or_default();
    vec![
        ("TWINBOOT_HOOK", run.hook.to_string()),
        ("TWINBOOT_UPDATE_ID", request.id.as_str().to_owned()),
        ("TWINBOOT_VERSION", version(&request.version)),
        ("TWINBOOT_FROM_VERSION", version(&run.from_version)),
        ("TWINBOOT_SLOT", run.update.target.to_string()),
        ("TWINBOOT_BOOTED_SLOT", booted.to_string()),
        ("TWINBOOT_URI", redact::display_url(&request.uri)),
        ("TWINBOOT_REASON", version(&run.reason)),
    ]
}
