"""Tensors read in few rows at a time, cast and checked in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ic_jax.weights.tensors import Tensor

T = TypeVar("T")
R = TypeVar("R")
CHUNK = 1 << 19  # elements that a thread has in memory, few enough for its cache
THREADS = min(8, os.cpu_count() or 1)


def cast(tensor: Tensor, dtype: np.dtype, *, transposed: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield a tensor in `dtype`, in pieces along its first axis, and whether they are finite.

    Args:
        transposed: yield all of it, in Fortran order, since its last axis will be the first.
    """
    rows_of = tensor.array_of_rows or _rows_of(tensor.array())
    whole = np.empty(tensor.shape, dtype, order="F") if transposed else None

    def work(rows: slice) -> tuple[np.ndarray, bool]:
        with np.errstate(over="ignore", invalid="ignore"):  # ml_dtypes warns of every NaN
            chunk = rows_of(rows).astype(dtype, copy=False)
            finite = bool(np.isfinite(chunk).all())
        if whole is not None:
            whole[rows] = chunk
        return chunk, finite

    chunks = _in_threads(work, _slices(tensor.shape))
    if whole is None:
        yield from chunks
    else:
        finite = [finite for _, finite in chunks]
        yield whole, all(finite)


def _rows_of(x: np.ndarray) -> Callable[[slice], np.ndarray]:
    return lambda rows: np.atleast_1d(x)[rows]


def _slices(shape: tuple[int, ...]) -> list[slice]:
    """Return slices of the first axis, of at most CHUNK elements or one row."""
    count = shape[0] if shape else 1
    size = max(1, CHUNK * count // max(1, int(np.prod(shape, dtype=np.int64))))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the function of each item in order, computed by threads that are a few items ahead."""
    items = list(items)
    if len(items) == 1:
        yield function(items[0])
        return
    results: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="cast") as pool:
        for item in items:
            results.append(pool.submit(function, item))
            if len(results) > THREADS:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
