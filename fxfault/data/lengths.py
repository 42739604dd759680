"""How many samples a data set has, which one of the user's own may not say."""

from __future__ import annotations

from typing import Any

from fxfault.errors import DataError, FxFaultError
from fxfault.models.user_factory import quote_error


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
    except (Exception, SystemExit) as error:  # a data set of the user's own may fail in any way
        raise DataError(
            f"the data set does not say how many samples it has, {quote_error(error)}; its len() "
            "must be an integer"
        ) from error
    return samples
