"""Quote the errors that a network raises while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fxfault.errors import FOREIGN, DataError, FxFaultError
from fxfault.evaluation.checks import shapes_of
from fxfault.messages import quote_error


@contextmanager
def quoting_model(
    during: str, inputs: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Iterator[None]:
    """Raise a `DataError` that quotes what the network raises in the block.

    A `StopIteration`, for instance, would end an epoch early without an error. The message names
    `during`, such as "a training step", and the shapes of the inputs.
    """
    try:
        yield
    except FxFaultError:
        raise
    except torch.OutOfMemoryError as error:
        raise DataError("out of memory: lower training.batch_size") from error
    except FOREIGN as error:
        raise DataError(
            f"the model fails in {during}, on inputs of {shapes_of(inputs, keywords)}: "
            f"{quote_error(error)}"
        ) from error
