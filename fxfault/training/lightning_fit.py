"""Run Lightning's Trainer so that its errors, advice and random numbers do not get out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Import this first: see there.
from fxfault.training.lightning_import import Trainer  # isort: skip
from lightning.fabric.utilities.warnings import PossibleUserWarning

from fxfault.errors import DataError, FxFaultError
from fxfault.foreign import told
from fxfault.training.generators import preserved_generators
from fxfault.training.learner import Learner, TrainingBatches


def fit(
    module: Learner,
    batches: TrainingBatches,
    last: Path | None,
    *,
    device: torch.device,
    devices: int,
    **settings: Any,
) -> Trainer:
    """Make a Trainer and train a module in `devices` processes.

    Args:
        module: the module.
        batches: its batches.
        last: checkpoint to resume from; None starts a new training.
        device: the device, or its kind if `devices` is above 1.
        devices: number of processes.
        settings: further arguments of the Trainer.
    """
    with preserved_generators(), quiet_lightning():
        trainer = Trainer(
            **_devices(device, devices),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            inference_mode=False,  # Breaks some quantised layers (Xilinx/brevitas#1245).
            **settings,
        )
        try:
            trainer.fit(module.train(), datamodule=batches, ckpt_path=last, weights_only=True)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns it into this.
                raise KeyboardInterrupt from end
            raise told(end) from end  # The user's code called `sys.exit`.
        except torch.OutOfMemoryError as error:
            raise DataError("out of memory: lower training.batch_size") from error
        except FxFaultError as error:
            if "Original Traceback" not in str(error):
                raise
            # The error comes from a loader's worker process, with a traceback in its message.
            reason = str(error).strip().splitlines()[-1].partition(": ")[2]
            raise type(error)(reason) from error
    return trainer


def _devices(device: torch.device, devices: int) -> dict[str, Any]:
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    if device.type == "cpu":
        return {"accelerator": "cpu", "devices": devices, **strategy}
    chosen: Any = devices if devices > 1 else [device.index or 0]
    return {"accelerator": "gpu", "devices": chosen, **strategy}


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide advice that is meant for the author of the Trainer call, not for the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # Lightning 2.6 uses a class that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield
