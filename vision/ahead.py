"""Work in threads, ahead of who takes it: images are decoded while others are in the backbone."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], *, alone: bool) -> Iterator[Result]:
    """work(item) of each item, in their order; at most three items a thread are begun and not taken yet.

    An exception of `work` is raised where its result would come, and ends it.

    Args:
        alone: the threads do all that is computed. They are as many as torch has, and each computes by itself: no
            thread waits for another at the end of every layer. Otherwise they are as many as there are cores. Threads
            that others start meanwhile compute by themselves, too: torch has one number for all that are to come.
    """
    threads = torch.get_num_threads()
    count = threads if alone else cores()
    pool = ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1) if alone else None)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == 3 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C too
        torch.set_num_threads(threads)  # it was of the threads that set it, and of all that come after them


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
