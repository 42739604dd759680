"""Make the weights that come with fxfault out of a run of `fxfault-train`.

    fxfault-train --config digits --out run
    python -m benchmarks.bundle_checkpoint digits run/best.ckpt fxfault/bundled/weights/digits.pt

Only the network's state_dict is kept, and the file depends on nothing else.
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
    """Read, check, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="experiment that the run was trained by")
    parser.add_argument("checkpoint", type=Path, help="best.ckpt or last.ckpt of the run")
    parser.add_argument("out", type=Path, help="file to write")
    options = parser.parse_args()
    bundle(options.config, options.checkpoint, options.out)
    print(f"saved {options.out} ({options.out.stat().st_size} bytes)")


def bundle(config: str, checkpoint: Path, out: Path) -> None:
    """Write the weights alone.

    Args:
        config: bundled experiment or file, with data set, model and quantisation.
        checkpoint: of a run.
        out: file to write.
    """
    model, _ = load_model(load_experiment(config), str(checkpoint))
    content = io.BytesIO()  # Saved to a path, the bytes would depend on its name.
    torch.save(model.state_dict(), content)
    write_atomically(out, content.getvalue())


if __name__ == "__main__":
    main()
