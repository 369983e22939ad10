"""``python -m example_project``: the whole shop for a quarter of a minute."""

from __future__ import annotations

import sys

from .demo.interrupts import Interrupts


interrupts = Interrupts()  # Before the imports that take time.

from .demo.show import main  # noqa: E402


sys.exit(main(interrupts))
