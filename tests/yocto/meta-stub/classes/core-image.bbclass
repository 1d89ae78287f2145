# The names of an image's files.
IMAGE_BASENAME = "${PN}"
IMAGE_LINK_NAME = "${IMAGE_BASENAME}-${MACHINE}.rootfs"
IMAGE_NAME = "${IMAGE_LINK_NAME}-20260401000000"
IMGDEPLOYDIR = "${WORKDIR}/deploy-image"
IMAGE_ROOTFS = "${WORKDIR}/rootfs"
IMAGE_FSTYPES ?= "tar.gz"
IMAGE_BOOT_FILES ?= ""
EXTRA_IMAGECMD:ext4 ?= "-i 4096"
CONVERSIONTYPES = "zst"
# `type` and the override are set for each image type, as image.bbclass does it.
