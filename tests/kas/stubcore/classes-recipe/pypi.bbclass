# SPDX-License-Identifier: MIT
def pypi_src_uri(d):
    return "https://registry.example/packages/source/a/%s/x.tar.gz;downloadfilename=x" % d.getVar("PYPI_PACKAGE")
SRC_URI:prepend = "${PYPI_SRC_URI} "
