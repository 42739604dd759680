"""Train the network whose weights come with fxfault: quant_digits, 4-bit weights and activations.

    python -m benchmarks.train_digits --out fxfault/checkpoints_data/digits.pt

takes well under a minute on one core. The last epoch's weights are saved: the test split is
looked at once, after training, and chooses nothing.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from fxfault.data import build_dataset, dataset_facts
from fxfault.evaluation import accuracy
from fxfault.files import write_atomically
from fxfault.models import build_model

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
LARGEST_SHIFT = 1  # pixels
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def main() -> None:
    """Train, save and print both accuracies."""
    options = _parse_arguments()
    torch.set_num_threads(1)  # so small a network is slower on two
    started = time.perf_counter()
    model = train(epochs=options.epochs, seed=options.seed)
    content = io.BytesIO()  # saved to a path, the bytes would depend on its name
    torch.save(model.state_dict(), content)
    write_atomically(options.out, content.getvalue())
    for split in SPLITS:
        loader: DataLoader[Any] = DataLoader(build_dataset("digits", split), batch_size=500)
        print(f"{split} accuracy: {accuracy(model, loader):.2f} %")
    print(f"{options.epochs} epochs in {time.perf_counter() - started:.0f} s; saved {options.out}")


def train(*, epochs: int, seed: int) -> nn.Module:
    """A trained quant_digits, in eval mode.

    Args:
        epochs: passes over the 1,297 training images.
        seed: of torch's global generator (weights, order and shifts of the images).
    """
    torch.manual_seed(seed)
    facts = dataset_facts("digits")
    model = build_model(
        "quant_digits",
        num_classes=facts.num_classes,
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        weight_bit_width=4,
        act_bit_width=4,
    )
    dataset = build_dataset("digits", "train")
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH_SIZE, shuffle=True, drop_last=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * len(loader)
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(_shifted(images)), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """The batch moved by up to a pixel, which is how people differ in placing a digit."""
    down, right = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (2,)).tolist()
    padded = nn.functional.pad(images, [LARGEST_SHIFT] * 4)
    height, width = images.shape[2:]
    top, left = LARGEST_SHIFT + down, LARGEST_SHIFT + right
    return padded[:, :, top : top + height, left : left + width]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("digits.pt"), help="file to write")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
