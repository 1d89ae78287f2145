# Before config/u-boot/boot.cmd: what this board's kernel wants to know.
setenv twinboot_bootargs "console=ttyS0,115200"
