"""The program's entry, for the console script and `python -m safecode_trt`: an interrupt is quiet from the start on."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at once: while modules are imported nothing is there to be cleaned up."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Runs the command line on this process's arguments."""
    ours = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # a shell's background jobs ignore it
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from safecode_trt.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
