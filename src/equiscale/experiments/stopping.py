"""A stop at the next safe point, as Ctrl-C and SIGTERM ask for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_BLOCKABLE: Final = hasattr(signal, "pthread_sigmask")  # not on Windows


class StopRequest:
    """Whether to stop; asked at safe points.

    Attributes:
        signal: The number of the signal that asked; 0: none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._asked = threading.Event()

    def __call__(self) -> bool:
        """Whether somebody asked."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask to stop."""
        self._asked.set()


@contextmanager
def stop_on_signals(*, patient: bool = False) -> Iterator[StopRequest]:
    """Make the first SIGINT or SIGTERM a request, and the second one a KeyboardInterrupt.

    A patient process takes a second one for the same request: Ctrl-C, and Slurm, signal a sweep and its
    workers all at once, and then the sweep passes the signal on to them. In a thread that is not the main one
    signals cannot be had; the request is then as good as any other.
    """
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        if request() and not patient:
            raise KeyboardInterrupt
        request.signal = number
        request.ask()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in _STOPS}
    if _BLOCKABLE:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)  # of `stops_blocked`
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stops_blocked() -> Iterator[None]:
    """Let signals of a stop wait, also in processes that are started meanwhile, until those listen."""
    if not _BLOCKABLE:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
