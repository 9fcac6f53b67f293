"""Work on several things at once, in the order they come; polars, pyarrow and numpy let other threads run meanwhile."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Made = TypeVar("Made")
WORKERS = 2  # more would hold more in memory: each of polars' own steps uses all cores


def side_by_side(work: Callable[[T], Made], things: Iterable[T], workers: int = WORKERS) -> Iterator[Made]:
    """What `work` makes of each thing, in order; while one is used, the next ones are made, `workers` at once."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
