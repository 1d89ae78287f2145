//! Thousands of devices in one process, to rehearse a rollout on before real ones are at stake: the daemon's own
//! hub session, agent and state machine for each, on a machine in memory.

mod census;
mod device;
mod machine;
mod paper;
mod screen;
mod storm;
mod tags;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hub_emulator::hub::{Hub, HubError, HubOptions, Traffic};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use twinboot::agent::AgentError;
use twinboot::config;
use twinboot::control::Status;

use self::census::Census;
use self::device::ConnectError;
use self::machine::{Behaviour, Simulated};
use self::paper::Tier;
use self::screen::Screen;
use self::storm::Storm;
use self::tags::Tag;

/// How often the devices are looked at.
const TICK: Duration = Duration::from_millis(200);

/// A fleet is idle when nothing was under way for so long: the next wave of a rollout may take a moment.
const IDLE: Duration = Duration::from_secs(10);

/// Open files of the process that are no devices' sockets.
const FILES_BESIDE: u64 = 200;

/// What the emulated image would be known by.
const CHECK_VALUE: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

pub(super) const HELP: &str = "\
Each device is the daemon's own code: its hub session with TLS, token, pauses and twin, its agent and its update policy. \
In memory are only its slots, its boot loader, the download and the reboot. Without --connection-strings a hub is \
started for the fleet, and the tools of a service can be pointed at it.

A rollout by hand, to see what 3 % of bad devices look like:
  hub-emulator fleet --devices 500 --sick-percent 3 --update-to 2.0 --until-idle

A hub-wide outage of ten seconds, and how the fleet comes back:
  hub-emulator fleet --devices 2000 --storm --away-secs 10

The same for a million, reckoned with the daemon's own code in virtual time:
  hub-emulator fleet --devices 1000000 --storm --tier s3";

#[derive(Args)]
pub(super) struct Fleet {
    /// How many devices to register and to run
    #[arg(long, value_name = "N", default_value_t = 200, conflicts_with = "connection_strings")]
    devices: u32,
    /// Run these devices against a hub that runs already; a file with a device connection string on each line
    #[arg(long, value_name = "FILE")]
    connection_strings: Option<PathBuf>,
    /// The certificate of the authority to trust, or where to write that of the fleet's own hub
    #[arg(long, value_name = "PATH")]
    ca_file: Option<PathBuf>,
    /// Port for devices
    #[arg(long, value_name = "N", default_value_t = 8883)]
    mqtt_port: u16,
    /// Port of the fleet's own hub for the service API
    #[arg(long, value_name = "N", default_value_t = 8443)]
    https_port: u16,
    /// Tag the devices, with the percent of each value: ring=canary:1,early:9,broad:90; can be given more than once
    #[arg(long = "tag", value_name = "NAME=VALUE:PERCENT,...", conflicts_with = "connection_strings")]
    tags: Vec<Tag>,
    /// The version that all devices run at first
    #[arg(long, value_name = "VERSION", default_value = "1.0")]
    version: String,
    /// Once all are connected, set the desired property `firmware` of every device to this version
    #[arg(long, value_name = "VERSION", conflicts_with = "connection_strings")]
    update_to: Option<String>,
    /// A usual download; each takes between half as long and twice as long
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    download_secs: u64,
    /// A usual reboot; varies alike
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    reboot_secs: u64,
    /// Of a hundred updates, how many do not boot or fail a health check
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    sick_percent: u8,
    /// Of a hundred updates, how many are fetched with a wrong digest
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    corrupt_percent: u8,
    /// Another number is another fleet: other devices are slow, and others sick
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Once all are connected, cut every connection, and show how they come back
    #[arg(long, conflicts_with_all = ["connection_strings", "update_to"])]
    storm: bool,
    /// How long the hub is away in a storm
    #[arg(long, value_name = "SECONDS", default_value_t = 0, requires = "storm")]
    away_secs: u64,
    /// Reckon the storm of any number of devices in virtual time, against the quotas of this tier of IoT Hub
    #[arg(long, requires = "storm")]
    tier: Option<Tier>,
    /// Units of that tier
    #[arg(long, value_name = "N", default_value_t = 1, requires = "tier", value_parser = clap::value_parser!(u32).range(1..=200))]
    units: u32,
    /// End once there was an update and it is over everywhere
    #[arg(long)]
    until_idle: bool,
    /// End after this time
    #[arg(long, value_name = "SECONDS")]
    duration_secs: Option<u64>,
}

/// Why there is no rehearsal.
#[derive(Debug, thiserror::Error)]
pub(super) enum FleetError {
    #[error("start a hub on ports {mqtt} and {https} of the loopback interface: {source}")]
    Hub { mqtt: u16, https: u16, source: io::Error },
    #[error("write the authority's certificate to {}: {source}", path.display())]
    CaFile { path: PathBuf, source: io::Error },
    #[error("read the connection strings in {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {source}", path.display())]
    ConnectionString { path: PathBuf, line: usize, source: ConnectError },
    #[error("no connection string in {}", path.display())]
    NoDevices { path: PathBuf },
    #[error("tag a device: {0}")]
    Tags(#[from] HubError),
    #[error("{needed} open files are needed, and {limit} are allowed: raise it with `ulimit -Hn`")]
    Files { needed: u64, limit: u64 },
    #[error("show the fleet: {0}")]
    Show(#[from] io::Error),
    #[error("a device ended: {0}")]
    Device(#[from] AgentError),
}

/// Runs the fleet until it is asked to end.
pub(super) async fn run(options: &Fleet) -> Result<(), FleetError> {
    let mut screen = Screen::new();
    if let Some(tier) = options.tier {
        let storm = paper::reckon(options.devices, tier.quotas(options.units), options.seed);
        return Ok(screen.say(&storm.curves())?);
    }
    let (hub, devices) = match &options.connection_strings {
        Some(path) => (None, read(path, options)?),
        None => {
            let (hub, devices) = own_hub(options).await?;
            introduce(&hub, options, &mut screen)?;
            (Some(hub), devices)
        }
    };
    let behaviour = Arc::new(Behaviour {
        version: options.version.clone(),
        download: Duration::from_secs(options.download_secs),
        reboot: Duration::from_secs(options.reboot_secs),
        corrupt_percent: options.corrupt_percent,
        sick_percent: options.sick_percent,
        seed: options.seed,
    });
    let mut rehearsal = Rehearsal::start(hub, devices, &behaviour);
    let told = tokio::select! {
        told = rehearsal.play(options, &mut screen) => told,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(FleetError::Show),
    };
    rehearsal.conclude(&mut screen)?;
    told
}

/// A hub in this process, with all devices registered and tagged.
async fn own_hub(options: &Fleet) -> Result<(Hub, Vec<config::Hub>), FleetError> {
    // Both ends of each connection are here.
    allow_files(2 * u64::from(options.devices))?;
    let (mqtt, https) = (options.mqtt_port, options.https_port);
    let ports = HubOptions { mqtt_port: mqtt, https_port: https, ..HubOptions::default() };
    let hub = Hub::start(ports).await.map_err(|source| FleetError::Hub { mqtt, https, source })?;
    let ca_file = own_ca_file(options);
    let written = tokio::fs::write(ca_file, hub.ca_pem()).await;
    written.map_err(|source| FleetError::CaFile { path: ca_file.to_owned(), source })?;

    let ids: Vec<String> = (1..=options.devices).map(|number| format!("sim-{number:05}")).collect();
    let mut devices = Vec::new();
    for id in &ids {
        let string = hub.add_device(id);
        let device = device::hub(&string, hub.mqtt_port(), Some(ca_file));
        let no_file = |source| FleetError::ConnectionString { path: PathBuf::from(id), line: 1, source };
        devices.push(device.map_err(no_file)?);
    }
    for (seed, tag) in (options.seed..).zip(&options.tags) {
        for (id, value) in ids.iter().zip(tag.deal(ids.len(), seed)) {
            hub.patch_tags(id, json!({ &tag.name: value }))?;
        }
    }
    Ok((hub, devices))
}

fn own_ca_file(options: &Fleet) -> &Path {
    options.ca_file.as_deref().unwrap_or(Path::new("hub-emulator-ca.pem"))
}

fn introduce(hub: &Hub, options: &Fleet, screen: &mut Screen) -> io::Result<()> {
    screen.say(&format!("service:   https://localhost:{}", hub.https_port()))?;
    screen.say(&format!("authority: {}", own_ca_file(options).display()))?;
    screen.say(&format!("service connection string:\n  {}", hub.service_connection_string()))?;
    options.tags.iter().try_for_each(|tag| screen.say(&format!("tag {tag}")))
}

/// The devices of a file.
fn read(path: &Path, options: &Fleet) -> Result<Vec<config::Hub>, FleetError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| FleetError::Read { path: path.to_owned(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let devices = lines.map(|(index, line)| {
        let device = device::hub(line, options.mqtt_port, options.ca_file.as_deref());
        device.map_err(|source| FleetError::ConnectionString {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    });
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    if devices.is_empty() {
        return Err(FleetError::NoDevices { path: path.to_owned() });
    }
    allow_files(devices.len() as u64)?;
    Ok(devices)
}

/// Raises the limit of open files as far as this process may.
fn allow_files(sockets: u64) -> Result<(), FleetError> {
    let needed = sockets + FILES_BESIDE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(io::Error::from)?;
    if needed > hard {
        return Err(FleetError::Files { needed, limit: hard });
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.max(needed), hard).map_err(io::Error::from)?)
}

/// A fleet that runs.
struct Rehearsal {
    /// The fleet's own.
    hub: Option<Hub>,
    ids: Vec<String>,
    statuses: Vec<watch::Receiver<Status>>,
    lives: JoinSet<Result<(), AgentError>>,
    began: Instant,
}

impl Rehearsal {
    fn start(hub: Option<Hub>, devices: Vec<config::Hub>, behaviour: &Arc<Behaviour>) -> Self {
        let ids = devices.iter().map(|device| device.device_id.clone()).collect();
        let (mut statuses, mut lives) = (Vec::new(), JoinSet::new());
        for device in devices {
            let machine = Simulated::new(&device.device_id, Arc::clone(behaviour));
            let (status, shown) = watch::channel(Status::default());
            statuses.push(shown);
            lives.spawn(device::live(machine, device, status));
        }
        Self { hub, ids, statuses, lives, began: Instant::now() }
    }

    async fn play(&mut self, options: &Fleet, screen: &mut Screen) -> Result<(), FleetError> {
        let until = options.duration_secs.map(|secs| self.began + Duration::from_secs(secs));
        let over = || until.is_some_and(|until| until <= Instant::now());
        self.watch(screen, |census| census.all_connected() || over()).await?;
        screen.say(&format!("{} s to boot and connect", self.began.elapsed().as_secs()))?;
        if let (Some(hub), true) = (&self.hub, options.storm) {
            return self.brew(hub, options, screen).await;
        }
        if let (Some(hub), Some(version)) = (&self.hub, &options.update_to) {
            self.update(hub, version)?;
        }
        let mut busy_at = Instant::now();
        self.watch(screen, |census| {
            if !census.is_idle_again() {
                busy_at = Instant::now();
            }
            over() || (options.until_idle && busy_at.elapsed() >= IDLE)
        })
        .await
    }

    /// Shows the fleet until it is as `wanted`.
    async fn watch(
        &mut self,
        screen: &mut Screen,
        mut wanted: impl FnMut(&Census) -> bool,
    ) -> Result<(), FleetError> {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            while let Some(ended) = self.lives.try_join_next() {
                ended.map_err(io::Error::other)??;
            }
            let census = Census::take(&self.statuses);
            screen.show(&census, self.hub.as_ref().map(Hub::traffic))?;
            if wanted(&census) {
                return Ok(());
            }
        }
    }

    fn update(&self, hub: &Hub, version: &str) -> Result<(), FleetError> {
        let firmware = json!({
            "fwVersion": version,
            "fwPackageURI": format!("https://images.example/rootfs-{version}.img"),
            "fwPackageCheckValue": CHECK_VALUE,
        });
        for id in &self.ids {
            hub.patch_desired(id, json!({ "firmware": firmware }))?;
        }
        Ok(())
    }

    async fn brew(&self, hub: &Hub, options: &Fleet, screen: &mut Screen) -> Result<(), FleetError> {
        screen
            .say(&format!("storm: the hub cuts every connection, and is away for {} s", options.away_secs))?;
        let storm = Storm::brew(hub, options.devices, Duration::from_secs(options.away_secs)).await;
        Ok(screen.say(&storm.curves())?)
    }

    /// Why updates failed, and what the rehearsal took.
    fn conclude(&self, screen: &mut Screen) -> io::Result<()> {
        for (code, (count, example)) in Census::take(&self.statuses).failures {
            screen.say(&format!("{count:5} x {code}, as: {example}"))?;
        }
        if let Some(hub) = &self.hub {
            let Traffic { connects, twin_reads, twin_updates } = hub.traffic();
            let each = |count: u64| storm::as_f64(count) / storm::as_f64(self.ids.len() as u64);
            screen.say(&format!(
                "each, on average: {:.1} CONNECTs, {:.1} twin GETs, {:.1} twin PATCHes",
                each(connects),
                each(twin_reads),
                each(twin_updates)
            ))?;
        }
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        screen.say(&format!(
            "{} devices: {} s, of which {} s on a CPU; {} MB of memory at most",
            self.ids.len(),
            self.began.elapsed().as_secs(),
            (usage.user_time() + usage.system_time()).num_seconds(),
            usage.max_rss() / 1000,
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tempfile::TempDir;
    use twinboot::update::Code;

    use super::*;

    /// Generous: other tests run beside this one.
    const LIMIT: Duration = Duration::from_secs(120);

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fleet: Fleet,
    }

    async fn start(arguments: &str, behaviour: Behaviour) -> (TempDir, Rehearsal) {
        let directory = tempfile::tempdir().unwrap();
        let mut line =
            Line::parse_from(["", "--mqtt-port=0", "--https-port=0"].into_iter().chain(arguments.split(' ')));
        line.fleet.ca_file = Some(directory.path().join("ca.pem"));
        let (hub, devices) = own_hub(&line.fleet).await.unwrap();
        let rehearsal = Rehearsal::start(Some(hub), devices, &Arc::new(behaviour));
        rehearsal.reach(Census::all_connected).await;
        (directory, rehearsal)
    }

    fn quick() -> Behaviour {
        Behaviour {
            version: "1.0".to_owned(),
            download: Duration::from_secs(1),
            reboot: Duration::from_secs(1),
            corrupt_percent: 0,
            sick_percent: 0,
            seed: 1,
        }
    }

    impl Rehearsal {
        async fn reach(&self, wanted: impl Fn(&Census) -> bool) -> Census {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            let reach = async {
                loop {
                    ticks.tick().await;
                    let census = Census::take(&self.statuses);
                    if wanted(&census) {
                        return census;
                    }
                }
            };
            tokio::time::timeout(LIMIT, reach).await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_rollout_ends_on_each_device_as_its_image_deserves() {
        let behaviour = Behaviour { corrupt_percent: 10, sick_percent: 30, ..quick() };
        let (_directory, rehearsal) = start("--devices=60 --tag=ring=canary:10,broad:90", behaviour).await;
        let hub = rehearsal.hub.clone().unwrap();
        let rings = rehearsal.ids.iter().map(|id| hub.twin(id)["tags"]["ring"] == "canary");
        assert_eq!(rings.filter(|canary| *canary).count(), 6);

        rehearsal.update(&hub, "2.0").unwrap();
        let census = rehearsal.reach(|census| census.told == 60 && census.is_idle_again()).await;
        let failed = |code: Code| census.failures.get(&code.to_string()).map_or(0, |(count, _)| *count);
        let (corrupt, fell_back, unhealthy) =
            (failed(Code::DigestMismatch), failed(Code::BootFailed), failed(Code::HealthCheckFailed));
        assert!(corrupt > 0 && fell_back > 0 && unhealthy > 0, "{census:?}");
        assert_eq!(census.with_status("error"), corrupt);
        assert_eq!(census.with_status("rolledback"), fell_back + unhealthy);
        assert_eq!(census.versions["2.0"], 60 - corrupt - fell_back - unhealthy);
        assert_eq!(census.versions["2.0"], census.with_status("current"));
        // What the fleet shows is what the hub was told.
        for id in &rehearsal.ids {
            let wanted = |twin: &serde_json::Value| twin["firmware"]["lastFwUpdateEndTime"].is_string();
            hub.wait_reported(id, LIMIT, wanted).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_fleet_that_lost_its_hub_at_once_comes_back_spread() {
        let (_directory, rehearsal) = start("--devices=300", quick()).await;
        let storm = Storm::brew(rehearsal.hub.as_ref().unwrap(), 300, Duration::ZERO).await;
        for curve in [&storm.connects, &storm.twin_reads] {
            assert!(storm.per_device(curve) >= 1.0, "{}", storm.curves());
            // A ninth is expected; all of it would come of no jitter at all.
            assert!(storm.peak(curve) < 0.35, "{}", storm.curves());
        }
        rehearsal.reach(Census::all_connected).await;
    }
}
