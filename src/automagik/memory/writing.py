"""write_again: for a write that finds or makes, and whose make somebody else was faster with."""

from collections.abc import Callable
from typing import Final, TypeVar

from automagik.errors import Conflict
from automagik.store import Store, Transaction

__all__ = ["write_again"]

T = TypeVar("T")

_ATTEMPTS: Final = 5


async def write_again(store: Store, work: Callable[[Transaction], T]) -> T:
    """What `work` returns. It is done again, up to five times in all, where a unique row appeared between its look and its write.

    Raises: Conflict where even the last attempt met one.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return await store.write(work)
        except Conflict:
            continue
    return await store.write(work)
