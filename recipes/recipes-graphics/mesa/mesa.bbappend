# SPDX-License-Identifier: MIT
# The NPU's driver and the TensorFlow Lite delegate. NPULAB_GPU: "0" leaves out all that draws, "1" is with OpenGL ES; a
# build that says neither keeps what OE-core has.
PACKAGECONFIG:append:npulab = " gallium rocket teflon ${@'opengl egl gbm gles' if d.getVar('NPULAB_GPU') == '1' else ''}"
PACKAGECONFIG:remove:npulab = "${@npulab_left_out(d)}"

def npulab_left_out(d):
    if d.getVar("NPULAB_GPU") != "0":
        return ""
    return " ".join(sorted(set(d.getVarFlags("PACKAGECONFIG") or {}) - {"gallium", "rocket", "teflon"}))
