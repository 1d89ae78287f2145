# After a board's own board.cmd: on the console, the record of a story, is what the journal has.
setenv twinboot_bootargs "${twinboot_bootargs} net.ifnames=0 quiet systemd.show_status=no systemd.machine_id=7a3f0c1e5b9d48d2a6e4417c8f20b935"
