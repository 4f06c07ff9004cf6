# SPDX-License-Identifier: MIT
# meta-rockchip adds the GPU's driver, and with it LLVM: here only on request
PACKAGECONFIG:remove:npulab = "${@'' if bb.utils.to_boolean(d.getVar('NPULAB_GPU') or '0') else 'lima panfrost libclc'}"
