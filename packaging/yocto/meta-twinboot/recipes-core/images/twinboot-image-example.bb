SUMMARY = "A console image that twinboot updates"
DESCRIPTION = "The smallest image to bring a board up with, and a pattern for the image of a product."
LICENSE = "MIT"

inherit core-image twinboot_image

# A slot is replaced as a whole: what is to survive belongs to the data partition.
IMAGE_FEATURES += "read-only-rootfs ssh-server-dropbear"
