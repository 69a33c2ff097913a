"""How the C library gives memory back.

A request may be of many megabytes: a frame, a page, an upload. glibc learns from the first such block that is freed to keep the next ones,
up to 32 MiB each, and a server that served one large request stays large. With a fixed threshold each large block is mapped by itself
and given back when it is freed.
"""

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 1024 * 1024


def give_large_blocks_back() -> None:
    """See the module. For the whole process; without effect where the C library is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
