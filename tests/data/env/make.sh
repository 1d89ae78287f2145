#!/bin/sh
# Makes the environments in this directory with the tools of U-Boot itself and of libubootenv, from start.txt.
#
#   tests/data/env/make.sh [WORK-DIRECTORY]
#
# libubootenv's fw_setenv and mkenvimage come from Debian (libubootenv-tool, u-boot-tools). Debian no longer packages
# U-Boot's own fw_setenv, so it is built from Debian's source of U-Boot, in the work directory (target/tmp/envtools):
# tests/boot_env.rs uses it too where it finds it there.
# Needs: apt-get install libubootenv-tool u-boot-tools dpkg-dev gcc make bison flex libssl-dev
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../../../target/tmp/envtools}
mkdir -p "$work"
work=$(cd "$work" && pwd)

if [ ! -x "$work/fw_setenv" ]; then
    # Lists of source packages of our own: the machine's need not have any, and stay as they are.
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    mkdir -p "$work/apt/parts"
    for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        [ -f "$list" ] || continue
        case $list in
            *.list) sed -n 's/^deb /deb-src /p' "$list" > "$work/apt/parts/${list##*/}" ;;
            *.sources) sed 's/^Types:.*/Types: deb-src/' "$list" > "$work/apt/parts/${list##*/}" ;;
        esac
    done
    cat > "$work/apt/apt.conf" <<-END
	Dir::Etc::sourcelist "/dev/null";
	Dir::Etc::sourceparts "$work/apt/parts";
	Dir::State::lists "$work/apt/lists";
	Dir::Cache "$work/apt";
	END
    export APT_CONFIG="$work/apt/apt.conf"
    cd "$work"
    apt-get update -q
    apt-get source -q u-boot
    cd u-boot-*/
    make -s tools-only_defconfig
    make -s envtools
    cp tools/env/fw_printenv "$work/fw_printenv"
    # One program, which looks at its name.
    ln -f "$work/fw_printenv" "$work/fw_setenv"
    cd "$work"
    rm -rf u-boot* apt
fi

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
    change "$work/fw_setenv" "u-boot-$kind"
    start "libubootenv-$kind" $copies 0xff
    change fw_setenv "libubootenv-$kind"
    # New variables only, and zeros behind them, so that every byte is determined.
    start "u-boot-appended-$kind" $copies 0
    "$work/fw_setenv" -c "u-boot-appended-$kind.config" first '1'
    "$work/fw_setenv" -c "u-boot-appended-$kind.config" second '2 3'
done
# U-Boot's tool replaces a single file by one with the mode of a temporary file.
chmod 0644 ./*.bin
cp ./*.bin "$here/"
