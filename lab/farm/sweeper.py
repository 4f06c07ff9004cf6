# SPDX-License-Identifier: MIT
"""``python -m lab.farm.sweeper COORDINATOR SECONDS``: releases, again and again, what killed runs left on this host.

The last line of defence: it is needed when a runner and its keeper were both killed.
"""

from __future__ import annotations

import signal
import sys
import time

from lab.errors import KitError
from lab.farm import state


def main() -> int:
    """Until we are told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    coordinator, seconds = sys.argv[1], float(sys.argv[2])
    while True:
        time.sleep(seconds)
        try:
            places = state.sweep(coordinator)
        except (KitError, OSError) as error:
            print(f"{time.strftime('%H:%M:%S')} {error}", flush=True)
            continue
        for place in places:
            print(f"{time.strftime('%H:%M:%S')} released {place}, left by a killed run", flush=True)


if __name__ == "__main__":
    sys.exit(main())
