"""A small network and a user's LightningModule, without any code for faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from fxfault.training import FaultAwareTraining  # isort: skip  # before lightning itself
from lightning.pytorch import LightningModule, Trainer

BATCH = 8
CONSTANT: dict[str, Any] = {"scaling_impl_type": "const", "return_quant_tensor": True}


class Keep(nn.Module):
    """Records the codes that reach it, clean or struck."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Any) -> Any:
        self.seen.append((self.training, x.int().clone()))
        return x

    def codes(self, training: bool = True) -> list[Tensor]:
        return [codes for mode, codes in self.seen if mode is training]


def network(batch_norm: bool = False) -> nn.Sequential:
    """Build a network with two 4-bit sites, `0` and `4`; scales do not depend on the data."""
    torch.manual_seed(0)
    return nn.Sequential(
        QuantIdentity(bit_width=4, min_val=-2.0, max_val=2.0, **CONSTANT),
        Keep(),
        QuantLinear(6, 16, bias=False, weight_bit_width=4),
        nn.BatchNorm1d(16) if batch_norm else nn.Identity(),
        QuantReLU(bit_width=4, max_val=3.0, **CONSTANT),
        QuantLinear(16, 3, bias=False, weight_bit_width=4),
    )


def loader(samples: int = 4 * BATCH, batch: int = BATCH, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch, **options)


class Task(LightningModule):
    """A classifier as users write it."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = network() if net is None else net
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = batch
        return self.loss(self(inputs), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = batch
        self.log("val_loss", F.cross_entropy(self(inputs), labels), batch_size=len(labels))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=0.01)


def keep(task: Task) -> Keep:
    """Return the record behind the first site of a task's network."""
    found = task.net[1]
    assert isinstance(found, Keep)
    return found


def gradients(task: Task) -> list[Tensor]:
    return [p.grad.clone() for p in task.parameters() if p.grad is not None]


class GradientTask(Task):
    """Records the gradient of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps.append(gradients(self))


FAULTS = {"enabled": True, "probability": 20.0, "step_interval": 0.5, "apply_during": "both"}


class WriteDown(FaultAwareTraining):
    """Writes the record of one process to a file when training ends."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__({**FAULTS, **settings}, log_statistics=True)
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, GradientTask)
        assert self.faults is not None
        assert self.statistics is not None
        seen = {
            "codes": keep(pl_module).codes(),
            "validation": keep(pl_module).codes(training=False),
            "gradients": pl_module.steps,
            "weights": {k: v.clone() for k, v in pl_module.state_dict().items()},
            "seed": self.faults.seed,
            "rate": trainer.callback_metrics["fault_rate"],
            "val_rate": trainer.callback_metrics["val_fault_rate"],
            "statistics": self.statistics.to_dict(),
        }
        torch.save(seen, self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


def train(folder: Path, processes: int, **settings: Any) -> None:
    """Train two epochs with validation, with a joined batch of `2 * BATCH`."""
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[WriteDown(folder, **settings)],
    )
    samples, batch = 4 * 2 * BATCH, 2 * BATCH // processes
    if processes == 1:
        data, validation = (
            loader(samples, batch, sampler=JoinedBatches(samples, shuffle=shuffle))
            for shuffle in (True, False)
        )
    else:
        data, validation = loader(samples, batch, shuffle=True), loader(samples, batch)
    trainer.fit(GradientTask(), data, validation)


class JoinedBatches(Sampler[int]):
    """The joined samples of two processes; in each batch those of rank 0 come first."""

    def __init__(self, samples: int, shuffle: bool) -> None:
        self.parts = [
            DistributedSampler(range(samples), 2, rank, shuffle=shuffle)  # type: ignore[arg-type]
            for rank in (0, 1)
        ]

    def set_epoch(self, epoch: int) -> None:
        for part in self.parts:
            part.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        shares = [list(part) for part in self.parts]
        for start in range(0, len(shares[0]), BATCH):
            for share in shares:
                yield from share[start : start + BATCH]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)
