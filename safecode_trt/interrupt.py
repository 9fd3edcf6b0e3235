"""Ctrl-C in the program's process: quiet before the command line is there, and never in the middle of an import.

Libraries do not bear a KeyboardInterrupt while they are imported: some print it and go on, some call it a missing
module. Nothing here touches SIGINT where it is ignored, as in a shell's background jobs.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["leave_quietly", "raise_between_imports"]

INTERRUPTED = 130
RETRY_S = 0.02


def leave_quietly() -> None:
    """From now on an interrupt ends the process at once; for a time with nothing to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_between_imports() -> None:
    """From now on an interrupt is a KeyboardInterrupt, which waits for an import to end unless it is repeated."""
    if signal.getsignal(signal.SIGINT) is _leave:
        if hasattr(signal, "SIGALRM"):  # not on Windows, where it does not wait
            signal.signal(signal.SIGALRM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if hasattr(signal, "SIGALRM"):
        waiting = signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0
        if _importing(frame) and not waiting:
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)
            return
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
