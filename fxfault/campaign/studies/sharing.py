"""Whether the samples of a trial share faults, so that a trial is one draw."""

from __future__ import annotations

from fxfault.config.fault_injection import FaultInjectionConfig


def samples_share_faults(config: FaultInjectionConfig) -> bool:
    """Whether all samples of a trial share some of their faults.

    Then a trial is one draw, however many samples it has. Faults of the hardware are the same in
    every sample (`same_in_every_sample` of a fault model), and so are those of weights and biases.
    One of them among several faults is enough, as an interval should rather be too wide. In mode
    `layer`, a trial draws its site, and the faults of a list are drawn nowhere.
    """
    from fxfault.faults.fault_models import get_fault_model, is_same_in_every_sample

    models = [get_fault_model(entry.injection_type) for entry in config.entries()]
    drawn = config.mode == "layer" and config.injection_layer == -1
    stored = any(memory != "activations" for memory in config.memories)
    replays = any(entry.replay is not None for entry in config.entries())
    shared = config.hw_mask or drawn or stored or replays
    return shared or any(map(is_same_in_every_sample, models))
