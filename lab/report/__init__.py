# SPDX-License-Identifier: MIT
"""What a test run found: recorded by a pytest plugin, kept as one JSON document, shown as a page people read."""
