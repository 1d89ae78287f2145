# Before config/u-boot/boot.cmd: the slots are on a virtio disk, the console is the first serial line, and a kernel of x86
# is started in its own way.
setenv twinboot_interface virtio
setenv twinboot_bootargs "console=ttyS0,115200"
setenv twinboot_kernel /boot/bzImage
setenv twinboot_boot "zboot ${kernel_addr_r}"
