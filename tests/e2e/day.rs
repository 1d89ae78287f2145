//! A day of a device whose network, clocks, power and image server are as bad as they get: each hour another kind of
//! weather strikes in the midst of an update. The hours pass by clocks that are put on.
//!
//! `cargo test --release --test e2e bad_weather -- --ignored --nocapture --test-threads 1`, on a machine with nothing else
//! to do.

use std::time::Duration;

use hub_emulator::board::{Traits, board_image};
use hub_emulator::images::{DropFault, Faults, FlipFault, StatusFault};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::clocks::Clocks;
use crate::cloud::{DEVICE, World, sha256};
use crate::rig::{IMAGE_BYTES, LIMIT};
use crate::soak::{Held, flat};
use crate::weather::{PATIENT, Relay, YEARS, bytes, configure, slowly};

const HOUR: Duration = Duration::from_secs(3600);

/// The longest that one thing lasts.
const A_WHILE: Duration = Duration::from_secs(20 * 60);

/// Passes at once: shorter than any silence that is given up, and than a trial.
const STEP: Duration = Duration::from_secs(30);

/// CONNACK code 3: the server is not available.
const UNAVAILABLE: u8 = 3;

macro_rules! weather {
    ($($kind:ident,)*) => {
        #[derive(Clone, Copy, Debug)]
        enum Weather {
            $($kind,)*
        }

        use Weather::*;

        const ALL: &[Weather] = &[$($kind,)*];
    };
}

weather! {
    Fair,
    HubGone,
    HubRefuses,
    HubIsMute,
    HubThrottles,
    LinksGoDead,
    ServerDropsTwice,
    ServerIsBusy,
    ServerIsSlow,
    ServerLies,
    CaptivePortal,
    SickImage,
    ClockJumps,
    StandsStill,
    Killed,
    PowerCut,
}

impl Weather {
    /// Status and code with which the hour's update ends.
    fn ends(self) -> (&'static str, Option<&'static str>) {
        match self {
            ServerLies => ("failed", Some("DigestMismatch")),
            CaptivePortal => ("failed", Some("SizeMismatch")),
            SickImage => ("rolledBack", Some("HealthCheckFailed")),
            _ => ("completed", None),
        }
    }

    /// Of the image server, from the first byte on.
    fn faults(self) -> Faults {
        let busy = StatusFault { code: 503, requests: 3, retry_after_secs: Some(60) };
        match self {
            ServerDropsTwice => {
                Faults { drop: Some(DropFault { after_bytes: 400_000, requests: 2 }), ..Faults::default() }
            }
            ServerIsBusy => Faults { status: Some(busy), ..Faults::default() },
            ServerLies => {
                Faults { flip: Some(FlipFault { offset: 1_000_000, requests: 9 }), ..Faults::default() }
            }
            CaptivePortal => Faults::default(),
            _ => slowly(),
        }
    }
}

struct Day {
    world: World,
    clocks: Clocks,
    to_hub: Relay,
    to_images: Relay,
    passed: Duration,
    seed: u64,
}

impl Day {
    async fn begin(seed: u64) -> Self {
        let clocks = Clocks::new();
        let mut world = World::switched_off(Traits::default(), PATIENT, &clocks.daemon()).await;
        let to_hub = Relay::to(([127, 0, 0, 1], world.hub.mqtt_port()).into()).await;
        let to_images = Relay::to(world.images.address()).await;
        let port = to_hub.address.port();
        let config = format!("[hub]\nport = {port}\nkeep_alive = \"60s\"\n[health]\ndeadline = \"10m\"\n");
        configure(&world.rig, "60-day.toml", &config);
        world.power_on().await;
        Self { world, clocks, to_hub, to_images, passed: Duration::ZERO, seed }
    }

    /// A step passes, if there is time for it.
    async fn step(&mut self, may_pass: impl Fn(&Value) -> bool) {
        let status = self.world.rig.peek().await.unwrap_or_default();
        let phase = &status["reported"]["firmware"]["fwUpdateStatus"];
        let is_trial_far = ["downloading", "current", "error", "rolledback"].iter().any(|far| phase == far);
        if is_trial_far && may_pass(&status) {
            self.clocks.pass(STEP);
            self.passed += STEP;
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn pass(&mut self, time: Duration) {
        let end = self.passed + time;
        while self.passed < end {
            self.step(|_| true).await;
        }
    }

    /// Lets time pass where the device waits for something, until it is so.
    async fn pass_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let context = format!("seed {}: {what}", self.seed);
        // While bytes flow, time that passes would be the server's silence.
        let waits = |status: &Value| {
            let firmware = &status["reported"]["firmware"];
            let is_away = status["hubConnected"] == false && firmware["fwUpdateStatus"] != "downloading";
            is_away || firmware["fwUpdateSubstatus"] == "Waiting for the server"
        };
        let passing = async {
            while !is_so(self) {
                self.step(waits).await;
                // Whoever answers has to have a chance, too.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let in_time = tokio::time::timeout(2 * LIMIT, passing).await.is_ok();
        assert!(in_time, "{context}: {}\n{}", self.world.hub.reported(DEVICE), self.world.rig.board.log());
    }

    async fn hour(&mut self, hour: usize, weather: Weather) {
        let begin = self.passed;
        let (version, name) = (format!("2.{hour}"), format!("{hour}.img"));
        let traits = if matches!(weather, SickImage) { Traits::SICK } else { Traits::default() };
        let image = board_image(&version, traits, IMAGE_BYTES, 7);
        let portal = matches!(weather, CaptivePortal).then(|| b"<html>Please sign in.</html>".to_vec());
        self.world.images.put(&name, portal.unwrap_or_else(|| image.clone()));
        self.world.images.set_faults(&name, weather.faults());
        let call = json!({
            "fwPackageUri": format!("https://{}/{name}", self.to_images.address),
            "fwPackageCheckValue": sha256(&image),
            "fwVersion": version,
            "fwSize": image.len(),
            "updateId": version,
        });
        let runs_before = self.world.rig.board.booted();
        self.call(weather, call).await;
        self.strike(weather).await;

        let (ends, code) = weather.ends();
        let told = |day: &Self| {
            let reported = day.world.hub.reported(DEVICE);
            let status = &reported["firmwareStatus"];
            reported["firmware"]["updateId"] == *version
                && ["completed", "failed", "rolledBack"].iter().any(|end| status == end)
        };
        self.pass_until(&format!("{weather:?} ends"), told).await;
        let reported = self.world.hub.reported(DEVICE);
        let (firmware, board) = (&reported["firmware"], &self.world.rig.board);
        let context = format!("seed {}, {weather:?}: {reported:#}\n{}", self.seed, board.log());
        assert_eq!(
            (&reported["firmwareStatus"], firmware["error"]["code"].as_str()),
            (&json!(ends), code),
            "{context}"
        );
        let (runs, is_new) = (board.booted().unwrap(), ends == "completed");
        assert_eq!(Some(runs) != runs_before, is_new, "{context}");
        assert_eq!(firmware["slots"]["booted"], runs.letter(), "{context}");
        assert_eq!(firmware["currentFwVersion"] == *version, is_new, "{context}");
        assert_eq!(self.world.rig.variable("boot_slot"), runs.letter(), "{context}");
        assert_eq!(self.world.rig.variable("upgrade_available"), "0", "{context}");

        let rest = HOUR.saturating_sub(self.passed - begin);
        self.pass(rest).await;
        self.pass_until("the hub is there again", |day| day.world.hub.connected(DEVICE)).await;
    }

    /// Whose session ends before it is answered, asks again.
    async fn call(&mut self, weather: Weather, call: Value) {
        const ANSWER_LIMIT: Duration = Duration::from_secs(10);
        for _ in 0..10 {
            self.pass_until("the hub is there", |day| day.world.hub.connected(DEVICE)).await;
            let answered =
                self.world.hub.call_method(DEVICE, "firmwareUpdate", call.clone(), ANSWER_LIMIT).await;
            if let Ok(answer) = answered {
                return assert_eq!(answer.status, 200, "{weather:?}: {}", answer.payload);
            }
        }
        panic!("{weather:?}: no call is answered\n{}", self.world.rig.board.log());
    }

    /// The least of several moments: a connection may be about to end.
    async fn held(&self) -> Held {
        let mut several = Vec::new();
        for _ in 0..10 {
            self.world.rig.peek().await;
            several.push(Held::by(&self.world));
        }
        Held::least(&several)
    }

    async fn strike(&mut self, weather: Weather) {
        if matches!(weather, ServerIsBusy | ServerLies | CaptivePortal) {
            return;
        }
        let begun =
            |status: &Value| bytes(status) > 300_000 || status["reported"]["firmwareStatus"] != "downloading";
        self.world.rig.wait(begun).await;
        match weather {
            HubGone => {
                self.world.hub.set_away(true);
                self.pass(A_WHILE).await;
                self.world.hub.set_away(false);
            }
            HubRefuses => {
                self.world.hub.refuse_connects(4, UNAVAILABLE);
                self.world.hub.drop_connections();
                self.pass(A_WHILE).await;
            }
            HubIsMute => {
                self.world.hub.mute_twin(true);
                self.pass(A_WHILE).await;
                self.world.hub.mute_twin(false);
            }
            HubThrottles => self.world.hub.fail_next_patch(429),
            LinksGoDead => {
                self.to_hub.go_dead();
                self.to_images.go_dead();
                self.pass(10 * STEP).await;
            }
            ServerIsSlow => self.pass(HOUR).await,
            ClockJumps => {
                self.clocks.set_wall_clock(YEARS);
                self.pass(STEP).await;
                self.clocks.set_wall_clock(-YEARS);
            }
            StandsStill => {
                self.world.rig.signal(Signal::SIGSTOP);
                self.clocks.pass(A_WHILE);
                self.world.rig.signal(Signal::SIGCONT);
            }
            Killed => self.world.rig.board.kill_daemon().await.unwrap(),
            PowerCut => {
                self.world.rig.board.cut().await;
                self.world.rig.board.power_on().await.unwrap();
            }
            Fair | ServerDropsTwice | ServerIsBusy | ServerLies | CaptivePortal | SickImage => {}
        }
    }
}

/// In any order each kind once, before one comes again.
async fn hours_of_bad_weather(hours: usize) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut day = Day::begin(seed).await;
    let (mut coming, mut held) = (Vec::new(), Vec::new());
    for hour in 0..hours {
        if coming.is_empty() {
            coming = ALL.to_vec();
            random.shuffle(&mut coming);
        }
        day.hour(hour, coming.pop().unwrap()).await;
        held.push(day.held().await);
    }
    assert!(day.passed >= HOUR * u32::try_from(hours).unwrap(), "{:?}", day.passed);
    flat("bad weather", held.len(), &held);
}

#[tokio::test]
#[ignore = "its clocks leave a busy machine too little time"]
async fn a_device_lives_through_a_night_of_bad_weather() {
    hours_of_bad_weather(8).await;
}

#[tokio::test]
#[ignore = "minutes"]
async fn a_device_lives_through_three_days_of_bad_weather() {
    hours_of_bad_weather(72).await;
}
