"""Asked to stop: a machine that is about to go says so by SIGTERM (spot machines, schedulers, containers)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether this process was asked to stop."""

    asked = False

    def ask(self, signal_: int, frame: FrameType | None) -> None:
        self.asked = True


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within it SIGTERM does not end the process, but is noted: who looks can finish what it does.

    In a thread other than the main one, in which signals cannot be handled, nothing is ever noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
