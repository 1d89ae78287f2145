# A U-Boot whose configuration knows the names of either of two releases; the rest is not built.
B = "${WORKDIR}/build"
UNKNOWN = "CONFIG_ENV_REDUNDANT CONFIG_ENV_MMC_DEVICE_INDEX CONFIG_ENV_MMC_EMMC_HW_PARTITION"

do_configure() {
    mkdir -p ${B}
    printf '%s\n' CONFIG_ENV_IS_IN_EXT4=y CONFIG_ENV_SIZE=0x2000 CONFIG_SYS_MMC_ENV_PART=1 \
        CONFIG_CMD_BOOTI=y > ${B}/.config
    printf '%s\n' arch=arm 'bootcmd=bootflow scan -lb' bootlimit=9 kernel_addr_r=0x40400000 > ${B}/u-boot-initial-env
}
# Kconfig's part: of two assignments the last holds, and an unknown name is dropped.
oe_runmake() {
    awk -F= -v unknown=" ${UNKNOWN} " '/=/ && !index(unknown, " " $1 " ") { line[$1] = $0 }
        END { for (name in line) print line[name] }' ${B}/.config | sort > ${B}/.config.new
    mv ${B}/.config.new ${B}/.config
}
addtask deploy after do_compile
do_deploy() {
    mkdir -p ${DEPLOYDIR}
}
