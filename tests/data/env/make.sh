#!/bin/sh
# Makes the environments in this directory with the tools of U-Boot itself and of libubootenv, from start.txt.
#
# libubootenv's fw_setenv and mkenvimage come from Debian (libubootenv-tool, u-boot-tools). Debian no longer packages
# U-Boot's own fw_setenv, so it is that of the lab's build.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tools=$("$here/../../lab/build-u-boot" sandbox)

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
cd "$made"

# NAME COPIES PADDING: fresh copies of start.txt, and a fw_env.config for them.
start() {
    rm -f "$1.config"
    for copy in $(seq "$2"); do
        if [ "$2" = 2 ]; then redundant=-r; else redundant=; fi
        mkenvimage $redundant -p "$3" -s 0x400 -o "$1-$copy.bin" "$here/start.txt"
        echo "$made/$1-$copy.bin 0x0 0x400" >> "$1.config"
    done
}

# TOOL NAME: the changes that the tests expect.
change() {
    "$1" -c "$2.config" boot_slot b
    "$1" -c "$2.config" upgrade_available 1
    "$1" -c "$2.config" obsolete
    "$1" -c "$2.config" added 'one two'
}

for copies in 1 2; do
    case $copies in 1) kind=single ;; 2) kind=redundant ;; esac
    start "mkenvimage-$kind" $copies 0xff
    start "u-boot-$kind" $copies 0xff
    change "$tools/fw_setenv" "u-boot-$kind"
    start "libubootenv-$kind" $copies 0xff
    change fw_setenv "libubootenv-$kind"
    # New variables only, and zeros behind them, so that every byte is determined.
    start "u-boot-appended-$kind" $copies 0
    "$tools/fw_setenv" -c "u-boot-appended-$kind.config" first '1'
    "$tools/fw_setenv" -c "u-boot-appended-$kind.config" second '2 3'
done
# U-Boot's tool replaces a single file by one with the mode of a temporary file.
chmod 0644 ./*.bin
cp ./*.bin "$here/"
