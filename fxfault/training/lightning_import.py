"""Import PyTorch Lightning, an optional dependency, or say how to install it.

Whoever needs Lightning takes it from here: its import fails beside a torchvision that was
built for another torch, unless torchvision was imported with care before.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from fxfault.errors import DataError, FxFaultError
from fxfault.messages import quote_error

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    from fxfault.data.torchvision_import import import_torchvision

    with contextlib.suppress(DataError):  # Lightning also runs where there is no torchvision.
        import_torchvision()
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except (ImportError, RuntimeError, OSError) as error:
        raise FxFaultError(
            f"PyTorch Lightning cannot be imported ({quote_error(error)}); install it with "
            'pip install "fxfault[train]"'
        ) from error

__all__ = ["Callback", "LightningModule", "Trainer"]
