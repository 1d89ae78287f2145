//! Who else says what firmware devices are to have: of several, the hub takes one, and the others when that is gone.

use super::super::{CliError, Ctl, notice};
use crate::rollout::sets_firmware;

/// Tells of them.
pub(super) async fn tell_others(ctl: &Ctl, name: &str) -> Result<(), CliError> {
    let configurations = ctl.service.configurations().await?;
    let setting = configurations.iter().filter(|one| sets_firmware(one));
    for other in setting.filter_map(|one| one.get("id")?.as_str()).filter(|other| *other != name) {
        notice(&format!(
            "rollout `{other}` sets the firmware too: without `{name}`, the hub gives devices that both target what \
             `{other}` says; delete it when it is done"
        ));
    }
    Ok(())
}
