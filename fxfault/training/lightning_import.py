"""Import PyTorch Lightning, an optional dependency, or say how to install it.

All modules import Lightning from here: beside a torchvision that was built for another torch, its
import fails unless `import_torchvision` ran before.
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

    with contextlib.suppress(DataError):  # Lightning also runs without torchvision.
        import_torchvision()
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except (ImportError, RuntimeError, OSError) as error:
        raise FxFaultError(
            f"PyTorch Lightning cannot be imported ({quote_error(error)}); install it with "
            'pip install "fxfault[train]"'
        ) from error

__all__ = ["Callback", "LightningModule", "Trainer"]
