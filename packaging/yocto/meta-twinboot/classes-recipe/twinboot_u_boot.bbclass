# What U-Boot must be for boot.scheme = "bootcount", for any recipe that is built on OpenEmbedded's u-boot.inc: a
# board with a recipe of its own, u-boot-acme, needs u-boot-acme_%.bbappend with `inherit twinboot_u_boot`.

# mkenvimage and mkimage.
DEPENDS += "u-boot-tools-native"

FILESEXTRAPATHS:append := "${TWINBOOT_TREE}:"
SRC_URI += "\
    file://config/u-boot/boot.cmd;subdir=twinboot \
    file://config/u-boot/twinboot.env;subdir=twinboot \
"
# Where file:// is unpacked to; scarthgap has no UNPACKDIR.
TWINBOOT_UNPACKDIR = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"

# The environment, its counter, and the commands of the boot script.
TWINBOOT_UBOOT_CONFIG = "\
    CONFIG_ENV_IS_IN_MMC=y \
    CONFIG_ENV_OFFSET=${TWINBOOT_ENV_OFFSET} \
    CONFIG_ENV_OFFSET_REDUND=${TWINBOOT_ENV_OFFSET_REDUND} \
    CONFIG_ENV_SIZE=${TWINBOOT_ENV_SIZE} \
    CONFIG_BOOTCOUNT_LIMIT=y \
    CONFIG_BOOTCOUNT_ENV=y \
    CONFIG_CMD_FS_GENERIC=y \
    CONFIG_CMD_PART=y \
    CONFIG_EFI_PARTITION=y \
    CONFIG_FS_EXT4=y \
    CONFIG_HUSH_PARSER=y \
    CONFIG_LEGACY_IMAGE_FORMAT=y \
"

do_configure:append() {
    for config in $(find ${B} -maxdepth 2 -name .config); do
        # One place alone, or `saveenv` and Linux would mean different ones.
        sed -i -e 's/^\(CONFIG_ENV_IS_[A-Z0-9_]*\)=y$/# \1 is not set/' $config
        # Of two names for the second copy, and for the medium, each U-Boot knows one and drops the other. The
        # environment is in no boot partition of an eMMC, whatever the board is configured for.
        printf '%s\n' ${TWINBOOT_UBOOT_CONFIG} CONFIG_ENV_REDUNDANT=y CONFIG_SYS_REDUNDAND_ENVIRONMENT=y \
            CONFIG_SYS_MMC_ENV_DEV=${TWINBOOT_MMC} CONFIG_ENV_MMC_DEVICE_INDEX=${TWINBOOT_MMC} \
            CONFIG_SYS_MMC_ENV_PART=0 CONFIG_ENV_MMC_EMMC_HW_PARTITION=0 >> $config
        oe_runmake -C ${S} O=$(dirname $config) olddefconfig

        for wanted in ${TWINBOOT_UBOOT_CONFIG}; do
            grep -qx "$wanted" $config || bbfatal "this U-Boot cannot have $wanted, without which there is no fall back"
        done
        grep -qxE 'CONFIG_(ENV_REDUNDANT|SYS_REDUNDAND_ENVIRONMENT)=y' $config || \
            bbfatal "this U-Boot cannot have a redundant environment: a power cut while it is written would lose it"
        grep -qxE 'CONFIG_(SYS_MMC_ENV_DEV|ENV_MMC_DEVICE_INDEX)=${TWINBOOT_MMC}' $config && \
            grep -qxE 'CONFIG_(SYS_MMC_ENV_PART|ENV_MMC_EMMC_HW_PARTITION)=0' $config || \
            bbfatal "this U-Boot cannot be told which medium has the environment: Linux would write to another one"
    done
    # u-boot.inc packages it as u-boot-default-env.
    printf '%s %s %s\n' ${TWINBOOT_ENV_DEVICE} ${TWINBOOT_ENV_OFFSET} ${TWINBOOT_ENV_SIZE} \
        ${TWINBOOT_ENV_DEVICE} ${TWINBOOT_ENV_OFFSET_REDUND} ${TWINBOOT_ENV_SIZE} > ${TWINBOOT_UNPACKDIR}/fw_env.config
}

do_deploy:append() {
    # Stored variables replace the built-in ones as a whole, so the built-in ones go in too. The last of two lines
    # for a name is in force.
    initial=$(find ${B} -name u-boot-initial-env | sort | head -n 1)
    test -n "$initial" || bbfatal "u-boot-initial-env was not made: is UBOOT_INITIAL_ENV empty?"
    awk -F= '/^[^#=]+=/ { line[$1] = $0 } END { for (name in line) print line[name] }' \
        $initial ${TWINBOOT_UNPACKDIR}/twinboot/config/u-boot/twinboot.env | sort > ${WORKDIR}/twinboot-env.txt
    mkenvimage -r -s ${TWINBOOT_ENV_SIZE} -o ${DEPLOYDIR}/twinboot-env.bin ${WORKDIR}/twinboot-env.txt

    # The board's values come before the script, not into the environment: they hold even if that is lost.
    default='test -n "${%s}" || setenv %s "%s"\n'
    printf "$default" twinboot_device twinboot_device '${TWINBOOT_MMC}' \
        twinboot_kernel twinboot_kernel '${TWINBOOT_KERNEL}' \
        twinboot_bootargs twinboot_bootargs '${TWINBOOT_BOOTARGS}' > ${WORKDIR}/twinboot.cmd
    cat ${TWINBOOT_UNPACKDIR}/twinboot/config/u-boot/boot.cmd >> ${WORKDIR}/twinboot.cmd
    mkimage -T script -C none -n twinboot -d ${WORKDIR}/twinboot.cmd ${DEPLOYDIR}/twinboot.scr
}
