"""Make the weights that come with fxfault from a run of `fxfault train`.

    fxfault train digits --out run
    python -m benchmarks.bundle_checkpoint digits run/best.ckpt fxfault/bundled/weights/digits.pt

The file holds the network's state_dict and depends on nothing else.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch

from fxfault.experiment import load_experiment
from fxfault.experiment.parts import load_model
from fxfault.files.access import write_atomically


def main() -> None:
    """Read the checkpoint, check it, and write the weights alone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="experiment that the run was trained with")
    parser.add_argument("checkpoint", help="best.ckpt or last.ckpt of the run")
    parser.add_argument("out", type=Path, help="file to write")
    options = parser.parse_args()
    model, _ = load_model(load_experiment(options.config), options.checkpoint)
    content = io.BytesIO()  # If torch.save got the path, the bytes would depend on its name.
    torch.save(model.state_dict(), content)
    write_atomically(options.out, content.getvalue())
    print(f"saved {options.out} ({options.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
