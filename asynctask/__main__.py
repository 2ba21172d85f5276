"""`python -m asynctask`: the same as the command `asynctask`."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":  # a spawned child imports this file too, under another name
    sys.exit(main())
