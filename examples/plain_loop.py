"""Fault-aware training in a plain loop, with the schedule in a `FaultInjector`.

    python examples/plain_loop.py [EPOCHS]

The loop is that of the specification, word for word. It trains a small quantised network on
handwritten digits, with faults in about half of the steps, and then prints its accuracy with and
without faults. Ten epochs take about ten seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fxfault import FaultInjectionConfig, FaultInjector
from fxfault.data import build_dataset
from fxfault.evaluation import accuracy
from fxfault.models import build_model

CONFIG = FaultInjectionConfig(
    enabled=True,
    probability=10.0,
    injection_type="random",
    apply_during="train",
    step_interval=0.5,
    seed=42,
    track_statistics=True,
)


def main(num_epochs: int = 10) -> int:
    """Train and report; return the number of noisy steps."""
    torch.manual_seed(0)
    config = CONFIG
    train_loader: DataLoader[Any] = DataLoader(
        build_dataset("digits", "train"), batch_size=64, shuffle=True, drop_last=True
    )
    test_loader: DataLoader[Any] = DataLoader(build_dataset("digits", "test"), batch_size=500)
    model: Any = build_model(
        "quant_digits",
        num_classes=10,
        in_channels=1,
        image_size=(8, 8),
        weight_bit_width=4,
        act_bit_width=4,
    )
    injector = FaultInjector()
    model = injector.inject(model, config)
    print(f"Injected {injector.get_num_layers(model)} fault injection layers")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()

    # Training loop with fault injection
    for epoch in range(num_epochs):
        # Update epoch for all injection layers
        injector.update_epoch(model, epoch)

        # Reset iteration counters
        injector.reset_counters(model)

        # Set up step-level injection schedule
        if config.step_interval > 0:
            num_iterations = len(train_loader)
            injector.set_condition_injector(model, num_iterations, config.step_interval)

        # Enable/disable based on apply_during
        if config.apply_during in ("train", "both"):
            injector.set_enabled(model, True)
        else:
            injector.set_enabled(model, False)

        # Training loop
        model.train()
        for batch_idx, (inputs, labels) in enumerate(train_loader):  # noqa: B007
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()

        # Evaluation
        if config.apply_during in ("eval", "both"):
            injector.set_enabled(model, True)
        else:
            injector.set_enabled(model, False)

        model.eval()
        print(
            f"epoch {epoch}: loss {loss.item():.3f}, accuracy {accuracy(model, test_loader):.1f} %"
        )

    noisy_steps = model.faults.statistics.layer_stats[0].sample_count
    print(f"{noisy_steps} of {num_epochs * len(train_loader)} steps were noisy")
    model = injector.remove(model)
    print(f"accuracy without faults: {accuracy(model, test_loader):.1f} %")
    faulty = injector.inject(model, dataclasses.replace(config, apply_during="eval"))
    print(f"accuracy under faults: {accuracy(faulty, test_loader):.1f} %")
    return noisy_steps


if __name__ == "__main__":
    torch.set_num_threads(1)  # a network this small is slower on two threads
    main(*map(int, sys.argv[1:2]))
