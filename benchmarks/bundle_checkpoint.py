"""Make the weights that come with fxfault out of a run of `fxfault-train`.

    fxfault-train --config digits --out run
    python -m benchmarks.bundle_checkpoint digits run/best.ckpt fxfault/checkpoints_data/digits.pt

Only the network's state_dict is kept, and the file depends on nothing else.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch

from fxfault.checkpoints import load_checkpoint
from fxfault.data import dataset_facts
from fxfault.experiment import load_experiment
from fxfault.files import write_atomically
from fxfault.models import build_model


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
    experiment = load_experiment(config)
    assert experiment.dataset is not None
    assert experiment.model is not None
    facts = dataset_facts(experiment.dataset.name)
    model = build_model(
        experiment.model.name,
        num_classes=facts.num_classes,
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        weight_bit_width=experiment.quantization.weight_bit_width,
        act_bit_width=experiment.quantization.act_bit_width,
    )
    load_checkpoint(checkpoint, model)
    content = io.BytesIO()  # Saved to a path, the bytes would depend on its name.
    torch.save(model.state_dict(), content)
    write_atomically(out, content.getvalue())


if __name__ == "__main__":
    main()
