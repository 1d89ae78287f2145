# The standard tasks.
oe_runmake() {
    bbfatal "the recipe brings its own"
}
bbnote() {
    echo "NOTE: $*"
}
bbfatal() {
    echo "ERROR: $*"
    exit 1
}

addtask fetch
python base_do_fetch() {
    bb.fetch2.Fetch(d.getVar('SRC_URI').split(), d).download()
}
addtask unpack after do_fetch
python base_do_unpack() {
    bb.fetch2.Fetch(d.getVar('SRC_URI').split(), d).unpack(d.getVar('UNPACKDIR') or d.getVar('WORKDIR'))
}
addtask configure after do_unpack
base_do_configure() {
    :
}
addtask compile after do_configure
base_do_compile() {
    :
}
addtask install after do_compile
base_do_install() {
    :
}
addtask build after do_install
do_build() {
    :
}
EXPORT_FUNCTIONS do_fetch do_unpack do_configure do_compile do_install
