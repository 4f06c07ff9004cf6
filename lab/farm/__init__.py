# SPDX-License-Identifier: MIT
"""Farms of boards: the stock labgrid coordinator and exporter, and leases of places that always end."""
