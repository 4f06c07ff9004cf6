# SPDX-License-Identifier: MIT
"""The host of an exporter, reached as labgrid reaches it: one shared connection, its proxies included."""

from __future__ import annotations

import os
import shlex
from typing import Any

from labgrid.driver.exception import ExecutionError
from labgrid.util.ssh import sshmanager

from lab.firmware.medium import link_error
from lab.firmware.transports.ssh import arguments


def name(resource: Any) -> str:
    """The host that a network resource's commands run on: its exporter's, or the proxy that the exporter asks for."""
    extra = getattr(resource, "extra", None) or {}
    return str(extra.get("proxy") if extra.get("proxy_required") else resource.host)


def _connection(host: str) -> Any:
    """labgrid's connection to a host, a new one when that was lost."""
    if not sshmanager.get(host).isconnected():
        sshmanager.remove_by_name(host)
    return sshmanager.get(host)


def command(resource: Any) -> list[str]:
    """What goes before a shell command for that host; KitError (link) when it cannot be reached.

    With ``LG_PROXY`` the way leads through that host, by labgrid's connection to it.
    """
    host = name(resource)
    try:
        proxy = os.environ.get("LG_PROXY")
        if proxy and proxy != host:
            # labgrid's own proxymanager.get_command prefers what the exporter calls itself, which we may not reach
            through = [*_connection(proxy).get_prefix(), "-W", "%h:%p"]
            return arguments(host, ["-o", f"ProxyCommand={shlex.join(through)}"])
        _connection(host)
        return list(resource.command_prefix)
    except ExecutionError as error:
        raise link_error(f"{host}: {error.msg}", "try: ssh " + host) from error
