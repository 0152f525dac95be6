"""Keeps Python's cycle collector away from what is known of a store.

That is hundreds of thousands of small values without a cycle among them. A collection that walks them finds nothing and
stops every thread for as long: 40 ms with 10,000 images, in which nobody is served. Not for: anything else.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection meanwhile; what is there in the end is not looked at again, and freed when nobody refers to it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
