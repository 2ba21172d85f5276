"""`python -m asynctask`: the same as the command `asynctask`."""

from __future__ import annotations

from .cli.main import program

if __name__ == "__main__":  # a spawned child imports this file too, under another name
    program()
