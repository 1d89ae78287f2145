# Before config/u-boot/boot.cmd: the slots are on a virtio disk, the console is the first serial line.
setenv twinboot_interface virtio
setenv twinboot_bootargs "console=ttyAMA0"
