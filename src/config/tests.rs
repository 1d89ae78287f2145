use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::install::verify::ImageCheck;

const SLOTS: &str = r#"
[[slot]]
name = "a"
device = "/dev/a"
[[slot]]
name = "b"
device = "/dev/b"
"#;

const BOOT: &str = "[boot]\nscheme = \"bootcount\"\n";

/// Files in a directory of their own, the main one first.
struct Files(TempDir);

impl Files {
    fn new(main: &str) -> Self {
        let files = Self(TempDir::new().unwrap()).mode("", 0o755);
        std::fs::create_dir(files.path("config.d")).unwrap();
        files.with("config.toml", main)
    }

    fn with(self, name: &str, text: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test's file need not be durable")]
        std::fs::write(self.path(name), text).unwrap();
        self.mode(name, 0o600)
    }

    fn mode(self, name: &str, mode: u32) -> Self {
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self) -> Result<Loaded, Faults> {
        Config::load(&self.path("config.toml"), None)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|faults| panic!("{faults}")).config
    }

    /// What is wrong, with the directory left out.
    fn faults(&self) -> Vec<String> {
        let faults = self.load().expect_err("there are faults").to_string();
        let directory = format!("{}/", self.0.path().display());
        faults.replace(&directory, "").lines().map(str::to_owned).collect()
    }
}

/// A whole configuration with these lines in it.
fn with_lines(lines: &str) -> Files {
    Files::new(&format!("{lines}\n{BOOT}{SLOTS}"))
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = Files::new(&format!("{BOOT}{SLOTS}")).config();
    assert!(config.hub.is_none());
    assert_eq!(config.state_directory, PathBuf::from("/var/lib/twinboot"));
    assert_eq!(config.slots.device(Slot::B), &PathBuf::from("/dev/b"));
    assert_eq!(config.boot.scheme, Scheme::Bootcount);
    assert_eq!(config.boot.attempts, 3);
    assert_eq!(config.boot.lock_files.len(), 2);
    assert!(config.install.check == ImageCheck::Required && !config.install.allow_downgrade);
    assert_eq!(config.install.retry_limit, Duration::from_secs(24 * 3600));
    assert_eq!(config.health.deadline, Duration::from_secs(600));
    assert_eq!(config.health.hub, HubCheck::IfOnlineBefore);
    assert_eq!(config.system.reboot_command, ["systemctl", "reboot"]);
    assert_eq!(config.system.control_socket, PathBuf::from(DEFAULT_CONTROL_SOCKET));
}

#[test]
fn a_drop_in_wins_key_by_key_in_name_order() {
    let config = Files::new(&format!("[boot]\nscheme = \"rauc\"\nattempts = 2\n{SLOTS}"))
        .with("config.d/20-last.toml", "[boot]\nattempts = 7\n")
        .with("config.d/10-site.toml", "[boot]\nattempts = 5\n[[slot]]\nname = \"b\"\ndevice = \"/dev/c\"\n")
        .with("config.d/README", "not TOML")
        .config();
    assert_eq!(config.boot.attempts, 7);
    assert_eq!(config.boot.scheme, Scheme::Rauc);
    assert_eq!(config.slots.a, PathBuf::from("/dev/a"));
    assert_eq!(config.slots.b, PathBuf::from("/dev/c"));
}

#[test]
fn a_slot_may_have_further_images_and_both_have_the_same() {
    let of = |b: &str| {
        let text = format!(
            "[boot]\nscheme = \"rauc\"\n[[slot]]\nname = \"a\"\ndevice = \"/dev/a\"\n[slot.images]\nboot = \"/dev/c\"\n\
             [[slot]]\nname = \"b\"\ndevice = \"/dev/b\"\n{b}"
        );
        Files::new(&text).load()
    };
    let loaded = of("images = { boot = \"/dev/d\" }\n").unwrap();
    let pair = Pair { a: "/dev/c".into(), b: "/dev/d".into() };
    assert_eq!(loaded.config.slots.others, [("boot".to_owned(), pair)].into());
    for wrong in [
        "",
        "images = \"/dev/d\"\n",
        "[slot.images]\nboot = \"/dev/a\"\n",
        "[slot.images]\nrootfs = \"/dev/d\"\n",
    ] {
        assert!(of(wrong).is_err(), "{wrong}");
    }
}

/// Shows coreos/zincati#498, #1160.
#[test]
fn every_fault_of_every_file_is_reported_at_once() {
    let files = Files::new(
        r#"[hub]
host_name = "https://hub.example:8883"
keep_alive = "1h"
port = 0
[boot]
scheme = "grub"
atempts = 3
environment = "fw_env.config"

[[slot]]
name = "a"
device = "/dev/a"

[healht]
units = []
"#,
    )
    .with("config.d/10.toml", "[install]\ncheck = \"optionl\"\nretry_limit = 24\nattempts = 2\n")
    .with(
        "config.d/20.toml",
        "[state]\ndirectory = [\"/a\"]\n[boot]\nenvironment = \"/etc/fw_env.config\"\n",
    );
    let expected = [
        "config.toml: slot \"b\".name: is missing; write `[[slot]]`, `name = \"b\"` and `device = \"/dev/...\"`",
        "config.toml:1: hub.certificate_file: is missing; a device with a certificate needs all four of \
         `host_name`, `device_id`, `certificate_file`, `key_file`",
        "config.toml:1: hub.device_id: is missing; a device with a certificate needs all four of `host_name`, \
         `device_id`, `certificate_file`, `key_file`",
        "config.toml:1: hub.key_file: is missing; a device with a certificate needs all four of `host_name`, \
         `device_id`, `certificate_file`, `key_file`",
        "config.toml:2: hub.host_name: \"https://hub.example:8883\" is no host name; write the name alone, as in \
         \"myhub.azure-devices.net\": no `https://`, no port",
        "config.toml:3: hub.keep_alive: \"1h\" is out of range; write at least \"1s\" and at most \"19m 37s\"",
        "config.toml:4: hub.port: 0 is out of range; write a number from 1 to 65535",
        "config.toml:6: boot.scheme: \"grub\" is not known; write \"bootcount\", \"rauc\" or \"mender\"",
        "config.toml:7: boot.atempts: unknown key; did you mean `attempts`?",
        "config.toml:8: boot.environment: \"fw_env.config\" is no absolute path; begin it with `/`",
        "config.toml:14: healht: unknown section; did you mean `[health]`?",
        "config.d/10.toml:2: install.check: \"optionl\" is not known; did you mean \"optional\"?",
        "config.d/10.toml:3: install.retry_limit: is a number; write a number and a unit, as in \"30s\", \"10m\" \
         or \"24h\"",
        "config.d/10.toml:4: install.attempts: unknown key; `attempts` belongs in `[boot]`",
        "config.d/20.toml:2: state.directory: is a list; write a text in quotes",
    ];
    assert_eq!(files.faults(), expected);
}

#[test]
fn each_kind_of_mistake_has_its_message() {
    let cases = [
        (
            "[hub.dps]\nid_scope = \"x\"",
            "config.toml:1: hub.dps: enrolment by DPS is not there yet; use \
          `connection_string_file`, or a certificate",
        ),
        (
            "[hub]",
            "config.toml:1: hub.connection_string_file: is missing; write the connection string to \
          /etc/twinboot/connection-string, or to the file that this key names; or write `host_name`, `device_id`, \
          `certificate_file` and `key_file`; or remove `[hub]` for a device without a cloud",
        ),
        (
            "[install]\nallow_downgrade = \"no\"",
            "config.toml:2: install.allow_downgrade: is a text; write true or \
          false, without quotes",
        ),
        (
            "[install]\nca_file = \"/does/not/exist\"",
            "config.toml:2: install.ca_file: cannot read \
          /does/not/exist: No such file or directory (os error 2); create it, or name the file that is there",
        ),
        (
            "[health]\ndeadline = \"0s\"",
            "config.toml:2: health.deadline: \"0s\" is out of range; write at least \
          \"1s\" and at most \"1day\"",
        ),
        (
            "[health]\ndeadline = \"10 minuts\"",
            "config.toml:2: health.deadline: \"10 minuts\" is no length of \
          time; write a number and a unit, as in \"30s\", \"10m\" or \"24h\"",
        ),
        (
            "[health]\nunits = [\"sshd.service\", 3]",
            "config.toml:2: health.units: is a number; write a text in \
          quotes",
        ),
        ("[health]\nunit = []", "config.toml:2: health.unit: unknown key; did you mean `units`?"),
        (
            "[health]\nfoo = 1",
            "config.toml:2: health.foo: unknown key; the keys here are deadline, hub, units, \
          scripts",
        ),
        (
            "[system]\nreboot_command = []",
            "config.toml:2: system.reboot_command: names no program; write the \
          program and its arguments, as in [\"systemctl\", \"reboot\"]",
        ),
        (
            "[metrics]\nfile = \"/run/twinboot.txt\"",
            "config.toml:2: metrics.file: \"/run/twinboot.txt\" is no file for node_exporter; end it in `.prom`: \
          it reads no other files",
        ),
        ("[[hub]]\nport = 1", "config.toml:1: hub: is a list of tables; write `[hub]`, once"),
        (
            "attempts = 3",
            "config.toml:1: attempts: stands outside of any section; move it below its section, one \
          of [hub], [state], [boot], [install], [health], [hooks], [system], [metrics], [[slot]]",
        ),
        (
            "[[slot]]\ndevice = \"/dev/c\"",
            "config.toml:1: slot: has no name; write `name = \"a\"` or `name = \
          \"b\"`",
        ),
        ("[[slot]]\nname = \"c\"", "config.toml:2: slot.name: \"c\" is no slot; there are \"a\" and \"b\""),
        ("[[slot]]\nname = \"a\"", "config.toml:6: slot: slot \"a\" is there twice in this file; remove one"),
        (
            "[state]\ndirectory = /var",
            "config.toml:2: is not TOML: string values must be quoted, expected literal \
          string",
        ),
        ("[state]\n[state]", "config.toml:2: is not TOML: duplicate key"),
    ];
    for (lines, expected) in cases {
        assert_eq!(with_lines(lines).faults(), [expected], "for {lines}");
    }
}

#[test]
fn slots_have_devices_of_their_own_and_partitions_only_for_mender() {
    let slots =
        |more: &str| format!("[[slot]]\nname = \"a\"\ndevice = \"/x\"\n[[slot]]\nname = \"b\"\n{more}\n");
    let same = Files::new(&format!("{}{BOOT}", slots("device = \"/x\"")));
    assert_eq!(
        same.faults(),
        ["config.toml:6: slot.device: both slots have the same; each slot is a partition of its own"]
    );
    let drop_in = same.with("config.d/a.toml", "[[slot]]\nname = \"a\"\ndevice = \"/x\"\n");
    assert_eq!(
        drop_in.faults(),
        ["config.d/a.toml:3: slot.device: both slots have the same; each slot is a partition of its own"]
    );
    let partition = Files::new(&format!("{}{BOOT}", slots("device = \"/y\"\npartition = 3")));
    assert_eq!(
        partition.faults(),
        ["config.toml:7: slot \"b\".partition: is for `boot.scheme = \"mender\"` alone; remove it"]
    );
    let mender = "[boot]\nscheme = \"mender\"\n";
    let absent = Files::new(&format!("{}{mender}", slots("device = \"/y\"\npartition = 3")));
    assert_eq!(
        absent.faults(),
        [
            "config.toml:1: slot \"a\".partition: is missing; write its number: `boot.scheme = \"mender\"` tells \
          slots apart by it"
        ]
    );
    let whole = absent.with("config.d/a.toml", "[[slot]]\nname = \"a\"\npartition = 2\n").config();
    assert_eq!(whole.boot.scheme, Scheme::Mender { part_a: 2, part_b: 3 });
}

#[test]
fn a_syntax_error_does_not_hide_the_faults_of_other_lines_and_makes_none_up() {
    let files = Files::new(&format!("[hub\nport = 1\n{SLOTS}[boot]\nattempts = 99\n"));
    let faults = files.faults();
    assert!(faults[0].starts_with("config.toml:1: is not TOML: "), "{faults:?}");
    let range = "boot.attempts: 99 is out of range; write a number from 1 to 9";
    assert!(faults.iter().any(|fault| fault.ends_with(range)), "{faults:?}");
    assert!(!faults.iter().any(|fault| fault.contains("is missing")), "{faults:?}");
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_a_fault() {
    let files = Files::new("");
    let missing = Config::load(&files.path("none.toml"), None).expect_err("there is none").to_string();
    assert!(missing.contains("none.toml: no such file; an example is /usr/share/doc/twinboot"), "{missing}");
    std::fs::File::create(files.path("config.d/x.toml")).unwrap().write_all(b"\xff").unwrap();
    assert_eq!(files.faults(), ["config.d/x.toml: is not text; save it as UTF-8"]);
}

const CONNECTION_STRING: &str =
    "HostName=hub.example;DeviceId=gateway-1;SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0\n";

fn with_connection_string(more: &str) -> Files {
    let files = Files::new("").with("secret", CONNECTION_STRING);
    let path = files.path("secret");
    files.with("config.toml", &format!("[hub]\nconnection_string_file = {path:?}\n{more}\n{BOOT}{SLOTS}"))
}

#[test]
fn a_connection_string_names_the_hub_and_stays_secret() {
    let files = with_connection_string("gateway_host_name = \"edge.local\"");
    let loaded = files.load().unwrap_or_else(|faults| panic!("{faults}"));
    let hub = loaded.config.hub.as_ref().expect("a hub");
    assert_eq!((hub.host_name.as_str(), hub.device_id.as_str()), ("hub.example", "gateway-1"));
    assert_eq!(hub.gateway_host_name.as_deref(), Some("edge.local"));
    assert_eq!((hub.port, hub.keep_alive), (8883, Duration::from_secs(230)));
    assert!(matches!(&hub.credentials, Credentials::SharedAccessKey(_)));
    let shown = format!("{loaded:?}");
    assert!(!shown.contains("c2VjcmV0"), "{shown}");
}

#[test]
fn a_secret_file_for_everyone_is_refused() {
    let files = with_connection_string("").mode("secret", 0o644);
    assert_eq!(
        files.faults(),
        [
            "config.toml:2: hub.connection_string_file: every user of this machine has access to secret; take that \
          away: `chmod o= secret`"
        ]
    );
}

#[test]
fn a_damaged_connection_string_is_not_repeated_in_the_message() {
    let files = with_connection_string("").with("secret", "HostName=hub.example;SharedAccessKey=c2VjcmV0");
    let faults = files.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("config.toml:2: hub.connection_string_file: secret: "), "{faults:?}");
    assert!(!faults[0].contains("c2VjcmV0"), "{faults:?}");
}

#[test]
fn a_secret_in_the_place_of_another_value_is_not_repeated_in_the_message() {
    let string = CONNECTION_STRING.trim();
    for key in ["connection_string_file", "host_name", "device_id"] {
        let faults = with_lines(&format!("[hub]\n{key} = {string:?}")).faults();
        assert!(faults.iter().any(|fault| fault.contains("SharedAccessKey=[secret]")), "{faults:?}");
        assert!(!faults.iter().any(|fault| fault.contains("c2VjcmV0")), "{faults:?}");
    }
}

/// The networked part is not root.
#[test]
fn what_root_alone_can_read_of_all_that_is_no_secret_is_noted() {
    let open = |closed: &str, mode| {
        let files = with_lines("").with("ca.pem", "").with("config.d/1.toml", "");
        let install = format!("[install]\nca_file = {:?}\n{BOOT}{SLOTS}", files.path("ca.pem"));
        let files = files.with("config.toml", &install);
        let all = ["config.toml", "config.d/1.toml", "ca.pem"];
        let files = all.into_iter().fold(files, |files, name| files.mode(name, 0o644)).mode(closed, mode);
        let loaded = files.load().unwrap_or_else(|faults| panic!("{faults}"));
        loaded.notes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(open("ca.pem", 0o644), Vec::<String>::new());
    for (closed, place) in [
        ("ca.pem", "config.toml:2: install.ca_file: "),
        ("config.toml", "config.toml: "),
        ("config.d/1.toml", "config.d/1.toml: "),
    ] {
        let notes = open(closed, 0o640);
        assert!(notes.len() == 1 && notes[0].contains(place), "{notes:?}");
        assert!(notes[0].contains("let everyone read it: `chmod o+r /"), "{notes:?}");
    }
    // It lists the directory, too.
    for mode in [0o750, 0o751, 0o754] {
        let notes = open("config.d", mode);
        assert!(notes.len() == 1 && notes[0].contains("let everyone list it: `chmod o+rx /"), "{notes:?}");
        assert!(notes[0].ends_with("/config.d`"), "{notes:?}");
    }
    let notes = open("", 0o750);
    assert!(notes.len() == 3 && notes[0].contains("let everyone through: `chmod o+x /"), "{notes:?}");
    assert_eq!(open("", 0o751), Vec::<String>::new());
    let empty = with_lines("").with("config.toml", &format!("{BOOT}{SLOTS}")).with("config.d/note", "");
    let empty = empty.mode("config.toml", 0o644).mode("config.d", 0o700);
    assert_eq!(empty.load().unwrap_or_else(|faults| panic!("{faults}")).notes.len(), 1);
}

#[test]
fn names_beside_a_connection_string_are_refused() {
    let files = with_connection_string("device_id = \"other\"\nhost_name = \"another\"");
    assert_eq!(
        files.faults(),
        [
            "config.toml:3: hub.device_id: stands beside `connection_string_file`, which has it too; remove one",
            "config.toml:4: hub.host_name: stands beside `connection_string_file`, which has it too; remove one"
        ]
    );
}

#[test]
fn the_connection_string_that_systemd_hands_over_is_taken_where_none_is_named() {
    let hub = |section: &str| {
        let files =
            Files::new(&format!("{section}{BOOT}{SLOTS}")).with("connection-string", CONNECTION_STRING);
        let loaded = Config::load(&files.path("config.toml"), Some(files.0.path()));
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config.hub
    };
    assert_eq!(hub("[hub]\n").expect("a hub").device_id, "gateway-1");
    assert!(hub("").is_none(), "whoever removes the section wants no cloud");
}

#[test]
fn a_certificate_needs_its_names_and_its_key() {
    let files = Files::new("").with("device.pem", "").with("device.key", "");
    let (certificate, key) = (files.path("device.pem"), files.path("device.key"));
    let hub = format!(
        "[hub]\nhost_name = \"hub.example\"\ndevice_id = \"gateway-1\"\ncertificate_file = {certificate:?}\n"
    );
    let files = files.with("config.toml", &format!("{hub}{BOOT}{SLOTS}"));
    assert_eq!(files.faults().len(), 1);
    let files = files.with("config.toml", &format!("{hub}key_file = {key:?}\n{BOOT}{SLOTS}"));
    let credentials = files.config().hub.expect("a hub").credentials;
    assert!(matches!(credentials, Credentials::Certificate { key_file, .. } if key_file == key));
}

#[test]
fn what_systemd_hands_over_stands_for_the_files_that_are_not_for_this_user() {
    let string =
        with_connection_string("").with("secret", "unreadable").with("connection-string", CONNECTION_STRING);
    let hub = |files: &Files| {
        let loaded = Config::load(&files.path("config.toml"), Some(files.0.path()));
        loaded.unwrap_or_else(|faults| panic!("{faults}")).config.hub
    };
    assert_eq!(hub(&string).expect("a hub").device_id, "gateway-1");
    let blank = Files::new(&format!("[hub]\n{BOOT}{SLOTS}")).with("connection-string", "\n");
    assert!(Config::load(&blank.path("config.toml"), Some(blank.0.path())).is_err(), "there is no such file");

    let files = Files::new("").with("device.pem", "").with("device-key", "key");
    let names = "[hub]\nhost_name = \"hub.example\"\ndevice_id = \"gateway-1\"\nkey_file = \"/nowhere\"\n";
    let certificate = format!("certificate_file = {:?}\n", files.path("device.pem"));
    let files = files.with("config.toml", &format!("{names}{certificate}{BOOT}{SLOTS}"));
    let credentials = hub(&files).expect("a hub").credentials;
    assert!(
        matches!(credentials, Credentials::Certificate { key_file, .. } if key_file == files.path("device-key"))
    );

    let agent = Config::load_beside(
        &with_connection_string("").with("secret", "none").path("config.toml"),
        "/s".into(),
    );
    let agent = agent.unwrap_or_else(|faults| panic!("{faults}")).config;
    assert!(agent.hub.is_none() && agent.network.is_some(), "the agent reads no secret");
    let renewed = Files::new(&format!("[install]\nca_file = \"/is/renewed\"\n{BOOT}{SLOTS}"));
    let agent = Config::load_beside(&renewed.path("config.toml"), "/s".into());
    let ca_file = agent.unwrap_or_else(|faults| panic!("{faults}")).config.install.ca_file;
    assert_eq!(ca_file, Some("/is/renewed".into()), "the agent opens no authority's file");
}

#[test]
fn what_is_in_force_is_shown_with_its_origin() {
    let files = Files::new(&format!("{BOOT}{SLOTS}")).with("config.d/1.toml", "[boot]\nattempts = 5\n");
    let effective = files.load().unwrap_or_else(|faults| panic!("{faults}")).effective;
    let shown = |section: &str, key: &str| {
        let found = effective.iter().find(|e| e.section == section && e.key == key).expect("it is shown");
        (found.value.clone(), found.place.as_ref().and_then(|place| place.line))
    };
    assert_eq!(shown("boot", "attempts"), ("5".to_owned(), Some(2)));
    assert_eq!(shown("boot", "environment"), ("\"/etc/fw_env.config\"".to_owned(), None));
    assert_eq!(shown("slot \"b\"", "device"), ("\"/dev/b\"".to_owned(), Some(9)));
}

#[test]
fn the_example_sets_nothing_and_shows_every_default() {
    const EXAMPLE: &str = include_str!("../../config/config.toml");
    let missing = Files::new(EXAMPLE).faults();
    // What only a person knows; a guess could overwrite a partition.
    let keys = ["boot.scheme", "slot \"a\".name", "slot \"b\".name"];
    assert!(keys.iter().all(|key| missing.iter().any(|fault| fault.contains(key))), "{missing:#?}");
    assert!(missing.iter().all(|fault| fault.contains("is missing")), "{missing:#?}");

    let effective = with_connection_string("").load().unwrap_or_else(|faults| panic!("{faults}")).effective;
    for setting in effective.iter().filter(|setting| setting.place.is_none()) {
        let line = format!("#{} = {}", setting.key, setting.value);
        assert!(EXAMPLE.lines().any(|shown| shown == line), "{line} is not in the example");
    }
}

#[test]
fn every_line_of_the_example_is_a_key() {
    const EXAMPLE: &str = include_str!("../../config/config.toml");
    let is_setting = |line: &str| {
        line.starts_with("#[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains("# "))
    };
    let all: String = EXAMPLE
        .lines()
        .map(|line| if is_setting(line) { line.trim_start_matches('#') } else { line })
        .map(|line| format!("{line}\n"))
        .collect();
    let faults = Files::new(&all).faults();
    assert!(
        !faults.iter().any(|fault| fault.contains("unknown") || fault.contains("is not TOML")),
        "{faults:#?}"
    );
    // Both ways of naming the device are shown, and `mender` has its own key.
    assert!(faults.iter().any(|fault| fault.contains("hub.host_name: stands beside")), "{faults:#?}");
    assert!(faults.iter().any(|fault| fault.contains("partition: is for")), "{faults:#?}");
}
