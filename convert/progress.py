"""Progress bar of a conversion."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Advance = Callable[[str, int], None]


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """Show a bar of `total` bytes; yield `advance(name, n)`, which moves it by n bytes."""
    with tqdm(total=total, unit="B", unit_scale=True, mininterval=0.5) as bar:

        def advance(name: str, count: int) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update(count)

        yield advance
