# SPDX-License-Identifier: MIT
# DDR initialisation is a binary that only its vendor has: the user's own copy, by path and hash
INIT_FIRMWARE_DEPENDS:npulab = " npulab-ddr-blob:do_deploy"
ROCKCHIP_TPL:npulab = "${DEPLOY_DIR_IMAGE}/npulab-ddr.bin"
