"""The program's entry, for the console script and for `python -m safecode_trt`."""

from __future__ import annotations

from typing import NoReturn

from safecode_trt import interrupt

__all__ = ["main"]


def main() -> NoReturn:
    """Runs the command line on this process's arguments."""
    interrupt.leave_quietly()
    from safecode_trt.cli import main as run

    run()


if __name__ == "__main__":
    main()
