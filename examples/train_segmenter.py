"""Train the segmenter of fxfault.networks.digit_segmenter on mosaics of digits.

    python examples/train_segmenter.py [epochs] [pictures] [file]

It needs the extra `examples`. With a file, it writes the weights there. The weights that come with
fxfault are those of the defaults: 40 epochs of 1,500 pictures.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from fxfault.networks.digit_mosaics import BACKGROUND, CLASSES, Mosaics
from fxfault.networks.digit_segmenter import DigitSegmenter


def main(epochs: int = 40, pictures: int = 1500, file: str | None = None) -> float:
    """Train, print, and return the accuracy on pixels of digits, in percent."""
    torch.manual_seed(0)
    network = DigitSegmenter()
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(
        Mosaics("train", pictures), batch_size=32, shuffle=True, generator=order, drop_last=True
    )
    weights = torch.ones(CLASSES)
    weights[BACKGROUND] = 0.1  # Most pixels are background.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * len(loader))
    for epoch in range(epochs):
        for images, labels in loader:
            loss = cross_entropy(network(images), labels, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
    accuracy = accuracy_of(network.eval())
    print(f"accuracy on pixels of digits: {accuracy:.1f} %")
    if file is not None:
        torch.save(network.state_dict(), file)
    return accuracy


def accuracy_of(network: torch.nn.Module) -> float:
    """Share of the test pictures' digit pixels with the right class, in percent."""
    test = Mosaics("test")
    with torch.no_grad():
        predicted = network(test.images).argmax(1)
    ink = test.labels != BACKGROUND
    return 100 * float((predicted == test.labels)[ink].float().mean())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
