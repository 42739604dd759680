"""Ask a data set, which may be one of the user's own, for its samples and for their number."""

from __future__ import annotations

from typing import Any

from fxfault.errors import FOREIGN, DataError, FxFaultError
from fxfault.messages import quote_error


def samples_of(dataset: Any) -> int:
    """The samples that a data set says it has.

    >>> samples_of([1, 2])
    2
    >>> samples_of(3)
    Traceback (most recent call last):
    ...
    fxfault.errors.DataError: the data set does not say how many samples it has, TypeError: \
object of type 'int' has no len(); its len() must be an integer

    Raises:
        DataError: it does not say, or says something that cannot be.
    """
    try:
        samples = len(dataset)
    except FxFaultError:
        raise
    except FOREIGN as error:  # a data set of the user's own may fail in any way
        raise DataError(
            f"the data set does not say how many samples it has, {quote_error(error)}; its len() "
            "must be an integer"
        ) from error
    return samples


class Guarded:
    """A map-style data set whose exceptions are quoted.

    A `StopIteration` in it, for one, would end the pass of a loader as if all was read.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return samples_of(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The sample.

        Raises:
            DataError: the data set fails; its error is quoted.
        """
        try:
            return self.dataset[index]
        except FxFaultError:
            raise
        except FOREIGN as error:  # a data set of the user's own may fail in any way
            raise DataError(f"the data set cannot be read: {quote_error(error)}") from error
