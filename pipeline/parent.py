"""A process that does not outlive the one that started it."""

import ctypes
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1
"""Number of the prctl call by which Linux signals us when our parent dies, killed or not."""


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent of this process dies; does nothing elsewhere than on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
