# The boot script for boot.scheme = "bootcount", a reference to adapt to the board:
#
#   mkimage -T script -C none -n twinboot -d boot.cmd boot.scr
#
# U-Boot is built with CONFIG_BOOTCOUNT_LIMIT and CONFIG_BOOTCOUNT_ENV, with a redundant environment
# (CONFIG_ENV_REDUNDANT, older: CONFIG_SYS_REDUNDAND_ENVIRONMENT), and with the command `part`.
# Its stored environment has the variables of twinboot.env.
#
# What happens in a trial: twinboot writes boot_slot=b upgrade_available=1 bootcount=0 and bootlimit in one
# transaction. While upgrade_available is 1, U-Boot counts each boot in bootcount, and saves it. A boot above bootlimit runs
# altbootcmd instead of bootcmd: back to the other slot, for good. twinboot commits with upgrade_available=0
# bootcount=0. The script itself writes nothing: the environment is saved only by the counter and by altbootcmd.

# The medium with both slots, how the kernel is to be found in them, and how it is started: with the device tree that
# U-Boot runs with; on 32-bit ARM `bootz`, on x86 `zboot`, for a FIT image `bootm`.
test -n "${twinboot_interface}" || setenv twinboot_interface mmc
test -n "${twinboot_device}" || setenv twinboot_device 0
test -n "${twinboot_kernel}" || setenv twinboot_kernel /boot/Image
test -n "${twinboot_boot}" || setenv twinboot_boot "booti ${kernel_addr_r} - ${fdtcontroladdr}"

# An environment that lost the variable still boots.
test "${boot_slot}" = "b" || setenv boot_slot a

part number ${twinboot_interface} ${twinboot_device} rootfs_${boot_slot} twinboot_part
part uuid ${twinboot_interface} ${twinboot_device}:${twinboot_part} twinboot_uuid

# twinboot.slot= tells the daemon which slot runs, twinboot.trial= systemd whether this boot is one of a trial,
# twinboot.script= the doctor which version of this script it is.
# panic= turns a kernel that cannot go on into the next boot. Without init= a kernel that cannot start the init of a
# damaged slot goes on with /bin/sh, and waits at its prompt for ever. One without a driver for this medium waits for
# its root as long: rootwait= ends that by a panic, from Linux 6.6 on; older ones know the word without a number alone,
# and leave the other one to init. The watchdog (CONFIG_WATCHDOG_AUTOSTART here, RuntimeWatchdogSec= in systemd) ends
# what hangs, but not what waits: until systemd opens it, the kernel feeds it by itself, for watchdog.open_timeout=
# seconds where twinboot_bootargs has that, and else for ever.
setenv bootargs "${twinboot_bootargs} root=PARTUUID=${twinboot_uuid} rootwait rootwait=60 ro init=/sbin/init panic=5 twinboot.slot=${boot_slot} twinboot.trial=${upgrade_available} twinboot.script=1"

echo "twinboot: slot ${boot_slot}, trial ${upgrade_available}, boot ${bootcount} of ${bootlimit}"

if load ${twinboot_interface} ${twinboot_device}:${twinboot_part} ${kernel_addr_r} ${twinboot_kernel}; then
    run twinboot_boot
fi

# Only a boot that failed comes here. The reset counts in a trial; without one it tries again, which is all
# that is left to do.
echo "twinboot: slot ${boot_slot} does not boot"
sleep 1
reset
