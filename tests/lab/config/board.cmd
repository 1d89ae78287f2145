# Before config/u-boot/boot.cmd on the lab's board: the slots are on a virtio disk, and the console,
# the serial line, has what the journal has.
setenv twinboot_interface virtio
setenv twinboot_bootargs "console=ttyAMA0 net.ifnames=0 quiet systemd.show_status=no systemd.machine_id=7a3f0c1e5b9d48d2a6e4417c8f20b935"
