"""Read a data set that may be the user's own, and quote the errors that it raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxfault.foreign import quoting


def samples_of(dataset: Any) -> int:
    """Number of samples of a data set.

    Raises:
        DataError: its `len()` fails; the error is quoted.

    >>> samples_of(3)
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: len() of the data set must give its number of samples: TypeError: \
object of type 'int' has no len()
    """
    with quoting("len() of the data set must give its number of samples"):
        return len(dataset)


@dataclass(eq=False)
class Guarded:
    """A map-style data set that raises a `DataError` if the data set it wraps fails.

    A `StopIteration`, for instance, would make a loader end its pass early without an error.
    """

    dataset: Any

    def __len__(self) -> int:
        return samples_of(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with quoting("the data set cannot be read"):
            return self.dataset[index]
