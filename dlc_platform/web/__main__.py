"""Dagster's web server behind the gate: `python -m dlc_platform.web`, with the options of `dagster-webserver`.

Its token and the names under which it answers are those of the lab that DLC_PLATFORM_HOME names. If the server does not
see the lab's home, as in a container, the environment gives them.
"""

import sys

from dlc_platform.errors import PlatformError
from dlc_platform.orchestration import web_access
from dlc_platform.web.gate import Gate, Rules, host_of


def main() -> None:
    try:
        # Faults of these are reported before Dagster loads anything.
        token, hosts = web_access.token("--read-only" in sys.argv), frozenset(map(host_of, web_access.hosts()))
    except (PlatformError, ValueError) as error:
        sys.exit(f"{error}")
    from dlc_platform.orchestration.web_server import serve

    serve(lambda pages, is_read_only: Gate(pages, Rules(token, hosts, is_read_only)))


if __name__ == "__main__":
    main()
