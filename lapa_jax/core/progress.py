"""Progress bars, in one place so that all commands look alike."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(items: Iterable | None = None, *, total: int | None = None, initial: int = 0, desc: str = "", unit: str = "it"):
    """A progress bar over `items`, or one to `update(n)` by hand when `items` is None.

    On a terminal it redraws; in a log file it writes a line every 30 seconds, so that logs stay readable.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, total=total, initial=initial, desc=desc, unit=unit, mininterval=interval, dynamic_ncols=True)
