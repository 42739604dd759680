"""Fault-aware training with one extra line in an ordinary training loop.

    python examples/minimal_loop.py [EPOCHS]

`fxfault.transform` is the only change to the training script. The loop does not tell the model
which epoch it is, so for the faults it stays epoch 0. `step_interval` is the chance that a training
step is noisy. Evaluation has no faults.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import fxfault
from fxfault.data import build_dataset
from fxfault.evaluation import accuracy
from fxfault.models import build_model

FAULTS = {"enabled": True, "probability": 10.0, "step_interval": 0.3, "seed": 7}


def main(epochs: int = 10) -> list[bool]:
    """Train and report; return for each step whether it was noisy."""
    torch.manual_seed(0)
    train_loader: DataLoader[Any] = DataLoader(
        build_dataset("digits", "train"), batch_size=64, shuffle=True, drop_last=True
    )
    test_loader: DataLoader[Any] = DataLoader(build_dataset("digits", "test"), batch_size=500)
    net = build_model(
        "quant_digits",
        num_classes=10,
        in_channels=1,
        image_size=(8, 8),
        weight_bit_width=4,
        act_bit_width=4,
    )
    model: Any = fxfault.transform(net, FAULTS)  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()

    noisy = []
    for epoch in range(epochs):
        model.train()
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            noisy.append(model.faults[0].armed)  # only for the report
        model.eval()
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, accuracy {accuracy(model, test_loader):.1f} %"
        )

    print(f"{sum(noisy)} of {len(noisy)} steps were noisy")
    net.eval()  # the original: it shares its weights with the model and has no faults
    print(f"accuracy without faults: {accuracy(net, test_loader):.1f} %")
    faulty = fxfault.transform(net, {**FAULTS, "apply_during": "eval"})
    print(f"accuracy under faults: {accuracy(faulty, test_loader):.1f} %")
    return noisy


if __name__ == "__main__":
    torch.set_num_threads(1)  # a network this small is slower on two threads
    main(*map(int, sys.argv[1:2]))
