"""Measurements: one command here produces every figure that README quotes.

- `python -m benchmarks.overhead`: the cost of faults over the clean network.
- `python -m benchmarks.training`: the cost of faults in a training step.
- `python -m benchmarks.freeze`: the gain of freezing a network for evaluation.
- `python -m benchmarks.incremental`: the gain of running only what faults change.
- `python -m benchmarks.check`: the cost of comparing a transformed network with the original one.
- `python -m benchmarks.peers`: the time that other tools add, how ours grows, and whole studies
  side by side (the last alone: `python -m benchmarks.peers_study`).
- `python -m benchmarks.campaign`: the cost of a campaign's bookkeeping and gain of workers;
  with `--simulated-workers 1000`, how many workers one driver keeps busy.
- `python -m benchmarks.campaign_kills`: campaigns that are killed and resumed end the same.
- `python -m benchmarks.fat`: the gain of fault-aware training.

`benchmarks.bundle_checkpoint` makes the weights that come with the package.
"""
