# An image for an A/B board, and the files that update it. Inherit it beside core-image; the configuration requires
# conf/distro/include/twinboot.inc. For each image there are in the deploy directory
#
#   NAME.wic.zst           for the factory: the whole medium
#   NAME.ext4.zst          for the fleet: what goes into a slot
#   NAME.ext4.zst.json     the payload of the direct method firmwareUpdate, with SHA-256 and size
#   NAME.ext4.zst.minisig  its signature, where TWINBOOT_SIGN_KEY names a minisign key without a password

inherit features_check

REQUIRED_DISTRO_FEATURES = "systemd twinboot"

# What the device reports as its version, and the update as `fwVersion`: to be raised with each release.
TWINBOOT_VERSION ??= "${DISTRO_VERSION}"
# Where the update files will be served: https://, without the slash at the end.
TWINBOOT_URL ??= ""
TWINBOOT_SIGN_KEY ??= ""

WKS_FILE = "${TWINBOOT_LAYERDIR}/wic/twinboot-ab.wks.in"
# `ext4` by itself stays after its conversions: slot a of the factory image gets the bytes of the update file.
IMAGE_FSTYPES = "wic.zst wic.bmap ext4 ext4.zst ext4.zst.json ${@'ext4.zst.minisig' if d.getVar('TWINBOOT_SIGN_KEY') else ''}"
IMAGE_TYPEDEP:wic = "ext4"
IMAGE_ROOTFS_MAXSIZE ?= "${@int(d.getVar('TWINBOOT_SLOT_SIZE_MIB')) * 1024}"
# Not every U-Boot reads what mke2fs has learned lately.
EXTRA_IMAGECMD:append:ext4 = " -O ^metadata_csum_seed,^orphan_file"

# The kernel is part of the slot: it is updated, and falls back, with its modules.
IMAGE_INSTALL:append = " kernel-image os-release twinboot"
IMAGE_BOOT_FILES:append = " twinboot.scr;boot.scr"
do_image_wic[depends] += "virtual/bootloader:do_deploy"

CONVERSIONTYPES += "json minisig"
CONVERSION_CMD:json = "twinboot_payload ${IMAGE_NAME}.${type} > ${IMAGE_NAME}.${type}.json"
CONVERSION_CMD:minisig = "minisign -S -s ${TWINBOOT_SIGN_KEY} -m ${IMAGE_NAME}.${type} -x ${IMAGE_NAME}.${type}.minisig"

twinboot_payload() {
    printf '{'
    if [ -n "${TWINBOOT_URL}" ]; then
        printf '"fwPackageUri": "%s/%s", ' "${TWINBOOT_URL}" "$1"
    fi
    printf '"fwPackageCheckValue": "%s", "fwVersion": "%s", "fwSize": %s}\n' \
        "$(sha256sum "$1" | cut -d ' ' -f 1)" "${TWINBOOT_VERSION}" "$(stat -c %s "$1")"
}

python () {
    import re
    version = d.getVar('TWINBOOT_VERSION') or ''
    if not re.fullmatch(r'[A-Za-z0-9._+~-]+', version):
        bb.fatal("TWINBOOT_VERSION is '%s': letters, digits and . _ + ~ - are meant" % version)
}

ROOTFS_POSTPROCESS_COMMAND += "twinboot_release"
twinboot_release() {
    # The daemon reads there which version runs.
    release=$(readlink -f ${IMAGE_ROOTFS}${sysconfdir}/os-release)
    sed -i -e '/^IMAGE_VERSION=/d' $release
    echo 'IMAGE_VERSION="${TWINBOOT_VERSION}"' >> $release
}
