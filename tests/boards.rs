//! The boards of `config/boards`: valid, consistent, and for the Edison, whose variables count, run.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use twinboot::boot::fw_env::UbootEnv;
use twinboot::config::Config;

const EDISON_SECTORS: u64 = 7_634_944;

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn boards() -> Vec<PathBuf> {
    let entries = fs::read_dir(tree("config/boards")).unwrap().map(|entry| entry.unwrap().path());
    let boards: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert_eq!(boards.len(), 4);
    boards
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Name, first sector and sectors of each partition, after the table was written to an image of this size.
fn partitions(board: &Path, sectors: u64) -> Vec<(String, u64, u64)> {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(sectors * 512).unwrap();
    for arguments in [&["--quiet", "--no-act"][..], &["--quiet"]] {
        let table = File::open(board.join("partitions.sfdisk")).unwrap();
        succeed(Command::new("sfdisk").args(arguments).arg(image.path()).stdin(table));
    }
    let dump: Value =
        serde_json::from_str(&succeed(Command::new("sfdisk").arg("--json").arg(image.path()))).unwrap();
    let partitions = dump["partitiontable"]["partitions"].as_array().unwrap().iter();
    partitions
        .map(|partition| {
            let number = |key: &str| partition[key].as_u64().unwrap();
            (partition["name"].as_str().unwrap().to_owned(), number("start"), number("size"))
        })
        .collect()
}

/// `name=value` lines; the last of two for a name is in force.
fn variables(files: &[PathBuf]) -> BTreeMap<String, String> {
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split_once('=').unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[test]
fn every_configuration_is_valid_and_names_slots_of_the_table() {
    for board in boards() {
        let config = board.join("config.toml");
        succeed(Command::new(env!("CARGO_BIN_EXE_twinboot")).args(["check-config", "--config"]).arg(&config));
        let config = Config::load(&config, None).unwrap().config;
        let partitions = partitions(&board, EDISON_SECTORS);
        let size = |device: &Path| {
            let label = device.strip_prefix("/dev/disk/by-partlabel").unwrap().to_str().unwrap();
            partitions.iter().find(|(name, ..)| name == label).unwrap().2
        };
        assert_eq!(size(&config.slots.a), size(&config.slots.b), "{}", board.display());
        assert!(partitions.iter().any(|(name, ..)| name == "data"));
    }
}

#[test]
fn no_copy_of_an_environment_lies_in_another_partition() {
    for board in boards() {
        let path = board.join("fw_env.config");
        UbootEnv::new(&path, &[]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines.len(), 2, "a redundant environment");
        for line in lines {
            let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
            let (offset, size) = (number(line[1]), number(line[2]));
            let partitions = partitions(&board, EDISON_SECTORS);
            match line[0].strip_prefix("/dev/disk/by-partlabel/") {
                Some(label) => {
                    let (_, _, sectors) = partitions.iter().find(|(name, ..)| name == label).unwrap();
                    assert!(offset + size <= sectors * 512, "{label}");
                }
                // An SD card of its own has no partitions.
                None if board.ends_with("qemu-arm64") || board.ends_with("qemu-x86") => {}
                None => {
                    let first = partitions.iter().map(|(_, start, _)| start * 512).min().unwrap();
                    assert!(offset + size <= first, "{}: {line:?}", board.display());
                }
            }
        }
    }
}

/// To the sector: what twinboot and its images must never move.
#[test]
fn the_first_six_partitions_of_the_edison_are_intels() {
    let expected = [
        ("u-boot0", 2048, 4096),
        ("u-boot-env0", 6144, 2048),
        ("u-boot1", 8192, 4096),
        ("u-boot-env1", 12288, 2048),
        ("factory", 14336, 2048),
        ("panic", 16384, 49152),
    ];
    let partitions = partitions(&tree("config/boards/edison"), EDISON_SECTORS);
    for ((name, start, size), expected) in partitions.iter().zip(expected) {
        assert_eq!((name.as_str(), *start, *size), expected);
    }
    // U-Boot's own notation of the same table.
    let table = &variables(&[tree("config/boards/edison/board.env")])["partitions"];
    for (field, (name, _, sectors)) in
        table.split(';').filter(|field| field.contains("name=")).zip(&partitions)
    {
        assert!(field.contains(&format!("name={name},")), "{field}: {name}");
        let size = format!("size={}MiB,", (sectors * 512) >> 20);
        assert!(field.contains(&size) || field.contains("size=-,"), "{field}: {size}");
    }
}

#[test]
fn every_script_and_environment_is_made_by_u_boots_tools() {
    let work = tempfile::tempdir().unwrap();
    for board in boards() {
        if board.join("board.cmd").exists() {
            let whole = work.path().join("boot.cmd");
            let mut file = File::create(&whole).unwrap();
            for part in [board.join("board.cmd"), tree("config/u-boot/boot.cmd")] {
                file.write_all(&fs::read(part).unwrap()).unwrap();
            }
            // hush is a subset of sh.
            succeed(Command::new("sh").arg("-n").arg(&whole));
            let mut mkimage = Command::new("mkimage");
            mkimage.args(["-T", "script", "-C", "none", "-n", "twinboot", "-d"]).arg(&whole);
            succeed(mkimage.arg(work.path().join("boot.scr")));
        }
        // The Edison's counts by itself, and has no other.
        let shared = (!board.ends_with("edison")).then(|| tree("config/u-boot/twinboot.env"));
        let files: Vec<PathBuf> = [board.join("board.env")].into_iter().chain(shared).collect();
        let all = variables(&files);
        let each: usize = files.iter().map(|file| variables(std::slice::from_ref(file)).len()).sum();
        assert_eq!(each, all.len(), "{}: two values for a name", board.display());
        for name in ["bootcmd", "altbootcmd", "boot_slot", "upgrade_available", "bootcount", "bootlimit"] {
            // The Edison's is Intel's.
            assert!(all.contains_key(name) || (name == "bootcmd" && board.ends_with("edison")), "{name}");
        }
        for (name, value) in all.iter().filter(|(name, _)| !matches!(name.as_str(), "partitions")) {
            let mut sh = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            sh.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
            assert!(sh.wait().unwrap().success(), "{}: {name}={value}", board.display());
        }
    }
}

/// A fresh U-Boot may print an `altbootcmd` of its own, and with a counter it prints the boot that it has just counted. What
/// it prints of this one device is not for all others.
#[test]
fn an_environment_made_as_the_porting_guide_says_has_twinboots_variables_whatever_u_boot_printed() {
    let guide = fs::read_to_string(tree("docs/porting.md")).unwrap();
    let recipe: Vec<&str> = guide
        .lines()
        .skip_while(|line| !line.starts_with("awk "))
        .take_while(|line| !line.starts_with("```"))
        .collect();
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let printed = "altbootcmd=setenv boot_syslinux_conf extlinux/rollback.conf;run distro_bootcmd\n\
                   bootcount=1\nbootlimit=7\nbaudrate=115200\nethact=eth0\nethaddr=02:00:5e:00:00:01\n\
                   eth1addr=02:00:5e:00:00:02\nusbethaddr=02:00:5e:00:00:03\nserial#=4711\ncpuid#=0815\n\
                   fdtcontroladdr=7bf1e0a0\n\nEnvironment size: 95/16379 bytes\n";
    File::create(at("board.env")).unwrap().write_all(printed.as_bytes()).unwrap();
    fs::copy(tree("config/u-boot/twinboot.env"), at("twinboot.env")).unwrap();
    succeed(Command::new("sh").args(["-euc", &recipe.join("\n")]).current_dir(work.path()));

    let config = format!("{} 0 0x4000\n{} 0 0x4000\n", at("env.bin").display(), at("env.bin-2").display());
    File::create(at("fw_env.config")).unwrap().write_all(config.as_bytes()).unwrap();
    fs::copy(at("env.bin"), at("env.bin-2")).unwrap();
    let printed = succeed(Command::new("fw_printenv").arg("-c").arg(at("fw_env.config")));
    let mut expected = variables(&[tree("config/u-boot/twinboot.env")]);
    expected.extend([("baudrate".into(), "115200".into()), ("ethact".into(), "eth0".into())]);
    let stored: Vec<(String, String)> = printed
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(stored.len(), expected.len(), "one line for a name: {printed}");
    assert_eq!(stored.into_iter().collect::<BTreeMap<_, _>>(), expected);
}

/// The Edison's variables in a shell that has U-Boot's commands; `saveenv` keeps what the next boot begins with.
struct Edison {
    stored: BTreeMap<String, String>,
    saves: bool,
}

impl Edison {
    fn new() -> Self {
        let mut stored = variables(&[tree("config/boards/edison/board.env")]);
        // What Intel's built-in variables have.
        for (name, value) in [
            ("do_probe_dfu", "true"),
            ("do_compute_target", "true"),
            ("mmc_bootargs", "run do_bootargs_rootfs; setenv bootargs ${bootargs_rootfs} quiet"),
            ("loadaddr", "0x100000"),
            ("uuid_rootfs", "uuid-of-8"),
            ("uuid_update", "uuid-of-9"),
        ] {
            stored.insert(name.to_owned(), value.to_owned());
        }
        Self { stored, saves: true }
    }

    fn set(&mut self, assignments: &[(&str, &str)]) {
        self.stored.extend(assignments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }

    /// One power-on: the kernel's arguments, or nothing where there is no kernel in that slot.
    fn boot(&mut self, kernels: &str) -> String {
        const COMMANDS: &str = r#"
setenv() { name=$1; shift; eval "$name=\$*"; }
run() { eval "eval \"\$$(echo "$1" | tr - _)\""; }
saveenv() { [ -z "$BROKEN" ] || return 1; for name in boot_slot upgrade_available bootcount; do eval "echo \"SAVED $name=\$$name\""; done; }
load() { case " $KERNELS " in *" ${2#0:} "*) true ;; *) false ;; esac; }
zboot() { echo "BOOTS $bootargs"; exit; }
sleep() { :; }
reset() { echo RESET; exit; }
run boot_target_cmd
"#;
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(COMMANDS).env_clear().env("PATH", "/usr/bin:/bin").env("KERNELS", kernels);
        sh.env("BROKEN", if self.saves { "" } else { "1" });
        sh.envs(self.stored.iter().map(|(name, value)| (name.replace('-', "_"), value)));
        let printed = succeed(&mut sh);
        for line in printed.lines().filter_map(|line| line.strip_prefix("SAVED ")) {
            let (name, value) = line.split_once('=').unwrap();
            self.stored.insert(name.to_owned(), value.to_owned());
        }
        printed.lines().find_map(|line| line.strip_prefix("BOOTS ")).unwrap_or_default().to_owned()
    }
}

/// Shows fedora-iot/greenboot#107, #135, greenboot-rs#106, tiiuae/ghaf#2155.
#[test]
fn the_edison_tries_a_slot_three_times_and_goes_back() {
    let both = "8 9";
    let mut edison = Edison::new();
    let booted = edison.boot(both);
    let of_a = |booted: &str| {
        booted.starts_with("root=PARTUUID=uuid-of-8 ")
            && booted.contains(" twinboot.slot=a twinboot.trial=0 ")
    };
    assert!(of_a(&booted), "{booted}");
    // As every board: a kernel that finds no root, or no init in its slot, does not wait for ever, and reboots.
    let ends = " rootwait rootwait=60 ro init=/sbin/init panic=5 ";
    let script = fs::read_to_string(tree("config/u-boot/boot.cmd")).unwrap();
    assert!(booted.contains(ends) && script.contains(ends), "{booted}");

    edison.set(&[("boot_slot", "b"), ("upgrade_available", "1"), ("bootcount", "0")]);
    for count in ["1", "2", "3"] {
        let booted = edison.boot(both);
        assert!(
            booted.starts_with("root=PARTUUID=uuid-of-9 ")
                && booted.contains(" twinboot.slot=b twinboot.trial=1 "),
            "{booted}"
        );
        assert_eq!(edison.stored["bootcount"], count);
    }
    assert!(of_a(&edison.boot(both)), "the trial is over");
    assert_eq!(
        (edison.stored["upgrade_available"].as_str(), edison.stored["boot_slot"].as_str()),
        ("0", "a")
    );
    assert!(edison.boot(both).contains(" twinboot.slot=a "));

    // No kernel in the slot: each try resets, and is counted.
    edison.set(&[("boot_slot", "b"), ("upgrade_available", "1"), ("bootcount", "0")]);
    for _ in 0..3 {
        assert_eq!(edison.boot("8"), "");
    }
    assert!(edison.boot("8").contains(" twinboot.slot=a "));

    // A trial that cannot be counted is none.
    edison.set(&[("boot_slot", "b"), ("upgrade_available", "1"), ("bootcount", "0")]);
    edison.saves = false;
    assert!(edison.boot(both).contains(" twinboot.slot=a "));
    edison.saves = true;

    // Committed: nothing is counted, or saved.
    edison.set(&[("boot_slot", "b"), ("upgrade_available", "0"), ("bootcount", "0")]);
    for _ in 0..5 {
        assert!(edison.boot(both).contains(" twinboot.slot=b "));
        assert_eq!(edison.stored["bootcount"], "0");
    }
    // The environment is lost, and the built-in variables are these.
    let mut edison = Edison::new();
    assert_eq!(
        (edison.stored["do_partition_done"].as_str(), edison.stored["do_flash_os_done"].as_str()),
        ("1", "1")
    );
    assert!(edison.boot(both).contains(" twinboot.slot=a "));
}

/// What `tests/lab/build-u-boot` has built, if it has: the very parser and `test` of U-Boot.
fn sandbox() -> Option<PathBuf> {
    let lab = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab");
    let entries = fs::read_dir(lab).ok()?.flatten().map(|entry| entry.path());
    entries.map(|path| path.join("u-boot")).find(|path| {
        path.exists()
            && path.parent().is_some_and(|parent| parent.to_string_lossy().contains("u-boot-sandbox"))
    })
}

#[test]
fn the_edison_counts_by_u_boots_own_code_too() {
    let Some(u_boot) = sandbox() else {
        eprintln!("not run: tests/lab/build-u-boot has not built U-Boot's sandbox");
        return;
    };
    let work = tempfile::tempdir().unwrap();
    let mut stored = Edison::new().stored;
    stored.insert("mmc-bootargs".into(), stored["mmc_bootargs"].clone());
    // It has no kernel to start, no medium to save to, and is to go on.
    stored.insert("load_kernel".into(), "echo BOOTS ${bootargs}; false".into());
    let text: String = stored.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let text = text.replace("sleep 1; reset", "true").replace("saveenv", "true");
    File::create(work.path().join("env")).unwrap().write_all(text.as_bytes()).unwrap();
    let boots = "run boot_target_cmd; ".repeat(5);
    let commands = format!(
        "host load hostfs - 0x1000000 env; env import -t 0x1000000 ${{filesize}}; setenv boot_slot b; \
         setenv upgrade_available 1; {boots}poweroff"
    );
    let mut command = Command::new("timeout");
    command.arg("60").arg(&u_boot).arg("-d").arg(u_boot.with_extension("dtb")).args(["-c", &commands]);
    let output = command.current_dir(work.path()).stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let slots: Vec<&str> = printed
        .lines()
        .filter(|line| line.contains("BOOTS "))
        .filter_map(|line| line.split("twinboot.slot=").nth(1)?.get(..1))
        .collect();
    assert_eq!(slots, ["b", "b", "b", "a", "a"], "{printed}");
}
