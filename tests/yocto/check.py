"""What of the layer meta-twinboot can be checked without a build: parsed by a real bitbake, its tasks run as far as
they are ours, its factory layout laid out, beside what the rest of the tree says of slots and environment."""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types

# Servers of bitbake that its package on the index leaves out, and that parsing does not start.
for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[name] = types.ModuleType(name)

import bb
import bb.build
import bb.cookerdata
import bb.fetch2
import bb.parse

TREE = pathlib.Path(__file__).resolve().parents[2]
LAYER = TREE / "packaging/yocto/meta-twinboot"
STUB = TREE / "tests/yocto/meta-stub"

# What OpenEmbedded differs in, for us: where sources are unpacked, and which Rust it has by itself.
SERIES = {
    "scarthgap": {"RUSTVERSION": "1.75%"},
    "wrynose": {"UNPACKDIR": "${WORKDIR}/sources", "RUSTVERSION": "1.94.0"},
}


def base(series, work, **settings):
    """The configuration that bitbake makes of bblayers.conf, layer.conf and bitbake.conf."""
    conf = work / "conf"
    conf.mkdir(parents=True, exist_ok=True)
    settings = {**SERIES[series], "DL_DIR": work.parent / "downloads", **settings}
    lines = [f'{name} = "{value}"' for name, value in settings.items()]
    lines += ['BBPATH = "${TOPDIR}"', f'STUB_SERIES = "{series}"', f'BBLAYERS = "{STUB} {LAYER}"']
    (conf / "bblayers.conf").write_text("\n".join(lines) + "\n")
    os.chdir(work)
    configuration = bb.cookerdata.CookerConfiguration()
    configuration.env = {"PATH": os.environ["PATH"]}
    builder = bb.cookerdata.CookerDataBuilder(configuration)
    builder.parseBaseConfiguration()
    return builder


def recipe(builder, file, appends=()):
    """One recipe, parsed, and the reason why it is skipped, if it is."""
    d = builder.parseRecipe(str(file), [str(append) for append in appends], "")
    return d, d.getVar("__SKIPPED", False)


def run(d, *tasks):
    """Runs tasks of a recipe; what they said is in the error if one fails."""
    for directory in ("T", "D", "B", "S", "WORKDIR"):
        bb.utils.mkdirhier(d.getVar(directory))
    said = pathlib.Path(d.getVar("T"), "log")
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with said.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            for task in tasks:
                bb.build.exec_func(task, d)
        except bb.process.ExecutionError as error:
            raise AssertionError(f"{d.getVar('PN')} {task}: {error}\n{said.read_text()}") from None
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)


def daemon(series, work, compiled):
    """The recipe of the daemon: from the lock file to the files of its package."""
    file = next(LAYER.glob("recipes-core/twinboot/twinboot_*.bb"))
    version = tomllib.loads((TREE / "Cargo.toml").read_text())["package"]["version"]
    assert file.name == f"twinboot_{version}.bb", f"{file.name} is not named for {version} of Cargo.toml"
    if series == "scarthgap":
        _, skipped = recipe(base(series, work), file)
        assert "meta-lts-mixins" in (skipped or ""), f"Rust 1.75 was taken: {skipped}"

    d, skipped = recipe(base(series, work, RUSTVERSION="1.94.0"), file)
    assert not skipped, skipped
    # The real fetcher proves the checksum of each crate, the real unpacker lays them out for cargo.
    run(d, "do_fetch", "do_unpack", "do_configure")
    source = d.getVar("S")
    env = {**os.environ, "CARGO_HOME": d.getVar("CARGO_HOME")}
    tree = subprocess.check_output(["cargo", "tree", "--frozen"], cwd=source, env=env, text=True)
    assert tree.startswith(f"twinboot v{version}"), tree
    ours, pruned = (tomllib.loads((pathlib.Path(at) / "Cargo.lock").read_text())["package"] for at in (TREE, source))
    versions = {(package["name"], package["version"]) for package in ours}
    assert {(package["name"], package["version"]) for package in pruned} <= versions, "the lock file was not kept"

    if compiled:
        run(d, "do_compile")
    run(d, "do_install")
    image = pathlib.Path(d.getVar("D"))
    installed = {str(path.relative_to(image)) for path in image.rglob("*") if not path.is_dir()}
    units = {unit.name for unit in (TREE / "systemd").iterdir() if unit.suffix in (".service", ".socket", ".timer")}
    units |= set(d.getVar("SYSTEMD_SERVICE:twinboot").split())
    files = {"usr/bin/twinboot", "usr/lib/tmpfiles.d/twinboot.conf", "usr/lib/systemd/catalog/twinboot.catalog"}
    files.add("usr/lib/udev/rules.d/80-twinboot-usb.rules")
    files.add("usr/lib/systemd/system/timers.target.wants/twinboot-trial.timer")
    files |= {f"etc/twinboot/{name}" for name in ("config.toml", "config.d/10-layout.toml")}
    # What config.toml points at.
    files.add("usr/share/doc/twinboot/examples/hooks.d/README")
    # What tells the device from others is not lost with the slot.
    unit = (TREE / "systemd/twinboot-network.service").read_text()
    secrets = re.findall("^LoadCredential=.*:/(.*)$", unit, re.MULTILINE)
    for secret in secrets:
        assert os.readlink(image / secret) == f"/var/lib/twinboot/{pathlib.Path(secret).name}", secret
    files |= set(secrets)
    assert installed == files | {f"usr/lib/systemd/system/{unit}" for unit in units}, installed
    # On a read-only root nobody makes them later.
    lines = [line.split() for line in (TREE / "systemd/twinboot.tmpfiles").read_text().splitlines()]
    open_to_all = [secret for secret in secrets if ["z", f"/{secret}", "0600", "root", "root", "-"] not in lines]
    assert not open_to_all, f"secrets that others can read: {open_to_all}"
    missing = [path for kind, path, *_ in lines if kind == "d" and not (image / path[1:]).is_dir()]
    assert not missing, f"directories of twinboot.tmpfiles that the recipe does not make: {missing}"
    mount = image / "usr/lib/systemd/system/var-lib-twinboot.mount"
    subprocess.check_call(["systemd-analyze", "verify", "--man=no", mount])
    state = (image / "var/lib/twinboot").stat()
    assert state.st_mode & 0o777 == 0o700, oct(state.st_mode)


def u_boot(series, work):
    """The configuration, fw_env.config, stored environment and boot script that U-Boot's append makes."""
    file = STUB / "recipes/u-boot_2026.01.bb"
    appends = [LAYER / "recipes-bsp/u-boot/u-boot_%.bbappend"]
    d, _ = recipe(base(series, work, TWINBOOT_BOOTARGS="console=ttyAMA0 quiet"), file, appends)
    # The feature comes with twinboot.inc; it is taken out here to see that the append is silent without it.
    builder = base(series, work)
    builder.data.setVar("DISTRO_FEATURES:remove", "twinboot")
    plain, _ = recipe(builder, file, appends)
    assert "twinboot" not in (plain.getVar("SRC_URI") or ""), "the append acts on boards that did not ask for it"

    run(d, "do_fetch", "do_unpack", "do_configure", "do_deploy")
    config = pathlib.Path(d.getVar("B"), ".config").read_text().split("\n")
    for line in ("CONFIG_SYS_REDUNDAND_ENVIRONMENT=y", "CONFIG_BOOTCOUNT_ENV=y", "CONFIG_ENV_OFFSET_REDUND=0x140000",
                 "CONFIG_SYS_MMC_ENV_PART=0"):
        assert line in config, line
    assert "CONFIG_ENV_IS_IN_EXT4=y" not in config, "two places for the environment"

    made, ours = (fw_env(path) for path in (pathlib.Path(d.getVar("TWINBOOT_UNPACKDIR"), "fw_env.config"),
                                            TREE / "config/fw_env.config"))
    assert made == ours, f"{made} is not what config/fw_env.config says: {ours}"

    deployed = pathlib.Path(d.getVar("DEPLOYDIR"))
    script = work / "script"
    subprocess.check_call(["dumpimage", "-T", "script", "-p", "0", "-o", script, deployed / "twinboot.scr"],
                          stdout=subprocess.DEVNULL)
    defaults, boot = script.read_bytes()[8:].split(b"# The boot script for", 1)
    assert (TREE / "config/u-boot/boot.cmd").read_bytes() == b"# The boot script for" + boot, "not our boot script"
    assert b'|| setenv twinboot_bootargs "console=ttyAMA0 quiet"\n' in defaults, defaults

    for unknown, said in (("CONFIG_BOOTCOUNT_LIMIT", "this U-Boot cannot have CONFIG_BOOTCOUNT_LIMIT=y"),
                          ("CONFIG_SYS_MMC_ENV_PART CONFIG_ENV_MMC_EMMC_HW_PARTITION", "which medium")):
        d.setVar("UNKNOWN", unknown)
        try:
            run(d, "do_configure")
        except AssertionError as error:
            assert said in str(error), error
        else:
            raise AssertionError(f"a U-Boot without {unknown} was taken")
    return deployed / "twinboot-env.bin"


def fw_env(path):
    return [tuple([line.split()[0], *(int(field, 0) for field in line.split()[1:])])
            for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def image(series, work):
    """The update files that the image class makes, of a small file system."""
    file = LAYER / "recipes-core/images/twinboot-image-example.bb"
    subprocess.check_call(["minisign", "-G", "-W", "-f", "-s", work / "key", "-p", work / "key.pub"],
                          stdout=subprocess.DEVNULL)
    d, skipped = recipe(base(series, work, TWINBOOT_VERSION="2.0", TWINBOOT_URL="https://images.example.com",
                             TWINBOOT_SIGN_KEY=work / "key"), file)
    assert not skipped, skipped
    # What the image of the medium is made of, by OpenEmbedded's rules: a type that is not named does not stay.
    assert "ext4" in d.getVar("IMAGE_FSTYPES").split() and "ext4" in d.getVar("IMAGE_TYPEDEP:wic").split()
    root, deploy = pathlib.Path(d.getVar("IMAGE_ROOTFS")), pathlib.Path(d.getVar("IMGDEPLOYDIR"))
    (root / "etc").mkdir(parents=True)
    deploy.mkdir(parents=True)
    (root / "etc/os-release").write_text('ID=nodistro\nIMAGE_VERSION="1.0"\n')
    run(d, *d.getVar("ROOTFS_POSTPROCESS_COMMAND").split())
    assert (root / "etc/os-release").read_text() == 'ID=nodistro\nIMAGE_VERSION="2.0"\n'

    local = bb.data.createCopy(d)
    local.setVar("OVERRIDES", d.getVar("OVERRIDES") + ":ext4")
    name = d.getVar("IMAGE_NAME")
    ext4 = deploy / f"{name}.ext4"
    ext4.touch()
    os.truncate(ext4, 8 << 20)
    subprocess.check_call(["mke2fs", "-q", "-t", "ext4", *local.getVar("EXTRA_IMAGECMD").split(), "-d", root, ext4])
    features = subprocess.check_output(["dumpe2fs", "-h", ext4], text=True, stderr=subprocess.DEVNULL)
    assert not {"metadata_csum_seed", "orphan_file"} & set(features.split()), features
    (deploy / f"{d.getVar('IMAGE_LINK_NAME')}.ext4").symlink_to(ext4.name)
    subprocess.check_call(["zstd", "-q", "-f", "-3", ext4])
    for conversion in ("json", "minisig"):
        local.setVar("type", "ext4.zst")
        local.setVar("convert", f"cd ${{IMGDEPLOYDIR}}\n    {d.getVar('CONVERSION_CMD:' + conversion, False)}\n")
        local.setVarFlag("convert", "func", "1")
        run(local, "convert")

    update = deploy / f"{name}.ext4.zst"
    payload = json.loads((deploy / f"{name}.ext4.zst.json").read_text())
    assert payload == {"fwPackageUri": f"https://images.example.com/{update.name}", "fwVersion": "2.0",
                       "fwPackageCheckValue": hashlib.sha256(update.read_bytes()).hexdigest(),
                       "fwSize": update.stat().st_size}, payload
    subprocess.check_call(["minisign", "-V", "-q", "-m", update, "-p", work / "key.pub"])
    return d, ext4


def layout(d, ext4, environment, work):
    """Lays out the medium as wic does, beside what the rest of the tree says of slots and environment."""
    parser = argparse.ArgumentParser()
    for option in ("--source", "--sourceparams", "--part-name", "--label", "--fstype", "--offset", "--fixed-size"):
        parser.add_argument(option)
    parser.add_argument("--align", type=int, default=1)
    for option in ("--no-table", "--active"):
        parser.add_argument(option, action="store_true")
    wks = pathlib.Path(d.getVar("WKS_FILE")).read_text()
    lines = [shlex.split(line) for line in d.expand(wks).split("\n") if line.startswith("part ")]
    parts = [parser.parse_args(line[1:]) for line in lines]

    end, table, raw = 34 * 512, [], []
    for part in parts:
        start = kib(part.offset) if part.offset else -(-end // (part.align * 1024)) * part.align * 1024
        assert start >= end, f"{part} begins before {end}"
        source = (part.sourceparams or "").removeprefix("file=")
        file = environment if source == "twinboot-env.bin" else pathlib.Path(source)
        size = kib(part.fixed_size) if part.fixed_size else file.stat().st_size
        end = start + size
        if part.no_table:
            raw.append((start, size))
        else:
            table.append((part.part_name, start >> 20, size >> 20))
        if part.source == "rawcopy":
            assert file.stat().st_size <= size, f"{file} does not fit"
            part.write = (file, start)

    medium = work / "medium.img"
    with medium.open("wb") as opened:
        opened.truncate(end + (1 << 20))
        for file, start in (part.write for part in parts if part.source == "rawcopy"):
            opened.seek(start)
            opened.write(file.read_bytes())
    # The boot lab's, in MiB.
    assert table == [("boot", 4, 16), ("rootfs_a", 20, 400), ("rootfs_b", 420, 400), ("data", 820, 128)], table
    configured = tomllib.loads((LAYER / "recipes-core/twinboot/files/10-layout.toml").read_text())
    slots = [slot["device"] for slot in configured["slot"]]
    assert slots == [f"/dev/disk/by-partlabel/{name}" for name, *_ in table[1:3]], slots
    assert raw == [entry[1:] for entry in fw_env(TREE / "config/fw_env.config")], raw

    # The tools of libubootenv find both copies, with our variables in the place of the built-in ones.
    config = work / "fw_env.config"
    config.write_text("".join(f"{medium} {start:#x} {size:#x}\n" for start, size in raw))
    printed = subprocess.check_output(["fw_printenv", "-c", config], text=True).split("\n")
    for line in ("boot_slot=a", "upgrade_available=0", "bootlimit=3", "kernel_addr_r=0x40400000"):
        assert line in printed, printed
    assert [line for line in printed if line.startswith("bootlimit=")] == ["bootlimit=3"], printed
    with medium.open("rb") as opened:
        opened.seek(20 << 20)
        assert opened.read(ext4.stat().st_size) == ext4.read_bytes(), "slot a is not the update's image"


def kib(size):
    """A size as wic takes it, in bytes."""
    return int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]


def main():
    work = TREE / "target/yocto/work"
    shutil.rmtree(work, ignore_errors=True)
    downloads = work / "downloads"
    downloads.mkdir(parents=True)
    cargo_home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    for crate in cargo_home.glob("registry/cache/*/*.crate"):
        (downloads / crate.name).symlink_to(crate)

    for series in SERIES:
        daemon(series, work / series, "--compile" in sys.argv)
        environment = u_boot(series, work / series)
        d, ext4 = image(series, work / series)
        layout(d, ext4, environment, work / series)
        print(f"{series}: recipes, boot loader's files, update files and layout are right")


main()
