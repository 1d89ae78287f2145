SUMMARY = "A/B firmware updates directed by Azure IoT Hub"
DESCRIPTION = "A daemon that turns a direct method or a desired property of Azure IoT Hub into an A/B update of the \
root filesystem, judges the new system, and commits it or goes back."
SECTION = "admin"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=542c59db295950b0525de371b63732c2"

require twinboot-crates.inc

FILESEXTRAPATHS:append := "${TWINBOOT_TREE}:"
SRC_URI += "\
    file://Cargo.lock;subdir=${BP} \
    file://Cargo.toml;subdir=${BP} \
    file://LICENSE;subdir=${BP} \
    file://config;subdir=${BP} \
    file://src;subdir=${BP} \
    file://systemd;subdir=${BP} \
    file://10-layout.toml;subdir=${BP} \
    file://device-manifest.awk;subdir=${BP} \
    file://var-lib-twinboot.mount;subdir=${BP} \
"

inherit cargo features_check systemd useradd

REQUIRED_DISTRO_FEATURES = "systemd"

PACKAGECONFIG ??= "ca-certificates data-partition fw-tools"
# Roots for the hub and the image server; without it name your own with hub.ca_file and install.ca_file.
PACKAGECONFIG[ca-certificates] = ",,,,ca-certificates"
# Mounts the partition `data` on the state directory.
PACKAGECONFIG[data-partition] = ""
# fw_printenv and fw_setenv, for people; the daemon has its own.
PACKAGECONFIG[fw-tools] = ",,,,libubootenv-bin"
# For a board with a hardware watchdog: a kernel or systemd that hangs ends in the next boot, which is counted.
PACKAGECONFIG[watchdog] = ""

SYSTEMD_SERVICE:${PN} = "twinboot.service twinboot-network.socket ${@bb.utils.contains('PACKAGECONFIG', 'data-partition', 'var-lib-twinboot.mount', '', d)}"

# Members may use the control socket.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system twinboot"

# Symbols are split off into the -dbg package.
export CARGO_PROFILE_RELEASE_STRIP = "false"

python () {
    # That of the release, or of a layer that brings a newer one.
    rust = (d.getVar('PREFERRED_VERSION_cargo-native') or d.getVar('RUSTVERSION') or '').rstrip('%')
    if rust and bb.utils.vercmp_string_op(rust, '1.88', '<'):
        raise bb.parse.SkipRecipe('Rust 1.88 or newer is needed: on scarthgap add meta-lts-mixins, branch scarthgap/rust')
}

do_configure:append() {
    awk -f ${S}/device-manifest.awk ${S}/Cargo.toml > ${S}/Cargo.toml.device
    mv ${S}/Cargo.toml.device ${S}/Cargo.toml
    # Takes the packages that are no longer named out of the lock file, and changes no version in it.
    cargo update --offline --workspace --manifest-path ${S}/Cargo.toml
}

do_install:append() {
    install -D -m 0644 ${S}/config/config.toml ${D}${sysconfdir}/twinboot/config.toml
    for directory in config.d health.d hooks.d keys; do
        install -d ${D}${sysconfdir}/twinboot/$directory
    done
    install -D -m 0644 ${S}/config/hooks.d/README ${D}${docdir}/twinboot/examples/hooks.d/README
    install -m 0644 ${S}/10-layout.toml ${D}${sysconfdir}/twinboot/config.d/
    # The units are given these from there; the next image does not bring them, so that they outlive this slot.
    for secret in connection-string device.key; do
        ln -s ${localstatedir}/lib/twinboot/$secret ${D}${sysconfdir}/twinboot/
    done
    install -d ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/*.service ${S}/systemd/*.socket ${S}/systemd/*.timer ${D}${systemd_system_unitdir}/
    install -d ${D}${systemd_system_unitdir}/timers.target.wants
    ln -s ../twinboot-trial.timer ${D}${systemd_system_unitdir}/timers.target.wants/
    install -D -m 0644 ${S}/systemd/twinboot-usb.rules ${D}${nonarch_base_libdir}/udev/rules.d/80-twinboot-usb.rules
    install -D -m 0644 ${S}/systemd/twinboot.catalog ${D}${nonarch_libdir}/systemd/catalog/twinboot.catalog
    install -D -m 0644 ${S}/systemd/twinboot.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/twinboot.conf
    install -d -m 0700 ${D}${localstatedir}/lib/twinboot
    if ${@bb.utils.contains('PACKAGECONFIG', 'data-partition', 'true', 'false', d)}; then
        install -m 0644 ${S}/var-lib-twinboot.mount ${D}${systemd_system_unitdir}/
    fi
    if ${@bb.utils.contains('PACKAGECONFIG', 'watchdog', 'true', 'false', d)}; then
        install -D -m 0644 ${S}/systemd/twinboot-watchdog.conf ${D}${nonarch_libdir}/systemd/system.conf.d/50-twinboot.conf
    fi
}

FILES:${PN} += "\
    ${systemd_system_unitdir}/twinboot-network.service \
    ${systemd_system_unitdir}/twinboot-trial.service \
    ${systemd_system_unitdir}/twinboot-trial-no-daemon.service \
    ${systemd_system_unitdir}/twinboot-trial.timer \
    ${systemd_system_unitdir}/timers.target.wants \
    ${systemd_system_unitdir}/twinboot-usb@.service \
    ${nonarch_base_libdir}/udev/rules.d \
    ${nonarch_libdir}/systemd/catalog \
    ${nonarch_libdir}/systemd/system.conf.d \
    ${nonarch_libdir}/tmpfiles.d \
    ${localstatedir}/lib/twinboot \
"
CONFFILES:${PN} = "${sysconfdir}/twinboot/config.toml"

# systemd-run, for hooks and health checks: systemd itself only recommends it.
RDEPENDS:${PN} += "systemd-extra-utils"

# The boot loader's environment is found by /etc/fw_env.config.
RRECOMMENDS:${PN} += "u-boot-default-env"
