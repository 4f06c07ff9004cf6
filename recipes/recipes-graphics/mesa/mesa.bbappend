# SPDX-License-Identifier: MIT
# The NPU's driver and the TensorFlow Lite delegate on top of it; nothing that draws, unless NPULAB_GPU asks for it.
PACKAGECONFIG:npulab = "${@'gallium rocket teflon opengl egl gbm gles' if bb.utils.to_boolean(d.getVar('NPULAB_GPU') or '0') else 'gallium rocket teflon'}"
