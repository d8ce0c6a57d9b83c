"""Stop of a run whose steps are not finite, with the pictures that those steps saw."""

from collections import deque

import numpy as np
from jaxtyping import Array, Int

from ic_jax.from_dict import first_few
from train.data.dataset import Dataset
from train.data.errors import DataError


class NonfiniteStop:
    """Watch for too many steps in a row whose loss or gradient was not finite.

    Such steps change no parameters (`train.step`).
    """

    def __init__(self, limit: int, dataset: Dataset):
        self._limit, self._dataset = limit, dataset
        self._queued: deque[tuple[int, Int[Array, ""], np.ndarray]] = deque()
        self._seen: deque[np.ndarray] = deque(maxlen=limit)  # records of the steps in a row

    def add(self, step: int, count: Int[Array, ""], records: Int[np.ndarray, "b"]) -> None:
        """Note a step, and wait for the second one before it, so that at most two are queued.

        Args:
            count: steps in a row, up to this one, that were not finite.
            records: numbers of the records that this process gave to the step.

        Raises:
            FloatingPointError: the limit is reached; names the pictures of those steps.
        """
        self._queued.append((step, count, records))
        while len(self._queued) > 2:
            self._check(*self._queued.popleft())

    def finish(self) -> None:
        """Wait for all steps; raises as `add` does."""
        while self._queued:
            self._check(*self._queued.popleft())

    def _check(self, step: int, count: Int[Array, ""], records: np.ndarray) -> None:
        number = int(np.asarray(count))
        if not number:
            self._seen.clear()
            return
        self._seen.append(records)
        if number >= self._limit:
            raise FloatingPointError(
                f"{number} steps in a row up to step {step} had a loss or gradient that is not "
                f"finite; they saw {self._pictures()}; lower the learning rate, or look at these"
            )

    def _pictures(self) -> str:
        records = np.unique(np.concatenate(list(self._seen)))
        return first_few(map(self._name, records[:11]))

    def _name(self, record: int) -> str:
        try:
            return f"record {record} ({self._dataset.read(record).file})"
        except DataError:
            return f"record {record}"
