"""Give each package that limits tasks by a key the same burst, and count.

    python -m benchmarks.peers
    python -m benchmarks.peers --tasks 50 --only rq pydocket

The workers have room for 8 bodies of 0.05 s at once, of which 5 may run.
"""

from __future__ import annotations

import argparse
import importlib

from rich.console import Console
from rich.table import Table

from celery_bgtask.testing import embedded_server

from .peer import LIMIT, SECONDS, Peer, burst


MODULES = ("ours", "plain", "heimdall", "singleton", "dramatiqs", "rqs", "dockets")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=200, metavar="N")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args()
    ideal = options.tasks * SECONDS / LIMIT
    console = Console(width=80)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("package", "by", "ran", "at once", "x ideal"):
        table.add_column(name, justify="left" if name in {"package", "by"} else "right")
    for module in MODULES:
        peer: Peer = importlib.import_module(f"{__package__}.{module}").PEER
        if options.only and peer.name not in options.only:
            continue
        console.print(peer.name, end="\r")
        with embedded_server() as server:
            try:
                seen = burst(peer, server.url, options.tasks)
            except Exception as exc:  # noqa: BLE001 - the others count all the same
                table.add_row(peer.name, f"{type(exc).__name__}: {exc}", "", "", "")
                continue
        ran_all = seen.started >= options.tasks
        table.add_row(
            peer.name,
            peer.how,
            str(seen.started),
            str(seen.most),
            f"{seen.seconds / ideal:.2f}" if ran_all else "-",
        )
    console.print(f"{options.tasks} tasks on one key, limit {LIMIT}\n")
    console.print(table)


if __name__ == "__main__":
    main()
