"""What a worker needs to know: the study, the device, and the optimisations to use."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxfault.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker needs to set itself up, in plain values. Rows depend on the study alone.

    >>> Plan(study={}, incremental=False, verify=5.0)
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: verify: nothing is to be compared, as every run is a full one \
(--no-incremental, without --compile)

    Attributes:
        study: the study, as `Study.to_dict` returns it
        device: `auto`, `cpu`, `cuda` or `cuda:N`; with several GPUs, `auto` and `cuda` hand them
            out to the workers in turn
        threads: the number of torch's threads; None keeps the present number
        incremental: whether to compute only what faults change
            (`fxfault.evaluation.incremental.runner`)
        freeze: whether to quantise weights once
        compile: whether to run compiled code if faults strike most of the network
            (`fxfault.evaluation.compiled_runner`)
        cache_memory: the memory for the activations that incremental runs start from, in bytes,
            for all workers that share a machine (or a GPU) together; None: a quarter of the free
            memory
        verify: the share of the batches that also run in full and without compiled code, in
            percent; different predictions are an error. None: one batch of each cell, if that
            takes little time (`fxfault.evaluation.full.verification`)
        sharing: the number of workers on the machine
        folder: the folder that relative paths start from; None: the current one
    """

    study: Mapping[str, Any]
    device: str = "auto"
    threads: int | None = None
    incremental: bool = True
    freeze: bool = True
    compile: bool = False
    cache_memory: int | None = None
    verify: float | None = None
    sharing: int = 1
    folder: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range and options that contradict each other.

        Raises:
            ConfigError: there is such a value or option
        """
        # Both checks import Brevitas, which takes seconds: the driver does without it if it can.
        if self.cache_memory is not None:
            from fxfault.evaluation.incremental.runner import check_memory

            check_memory(self.cache_memory)
        if self.verify is not None:
            from fxfault.evaluation.full.verification import check_share

            check_share(self.verify)
        full = "as every run is a full one (--no-incremental"
        if self.compile and not self.freeze:
            raise ConfigError("compile: only a frozen network is compiled (--no-freeze)")
        if self.cache_memory is not None and not self.incremental:
            raise ConfigError(f"cache_memory: nothing is kept, {full})")
        if self.verify and not self.incremental and not self.compile:
            raise ConfigError(f"verify: nothing is to be compared, {full}, without --compile)")

    def to_json(self) -> str:
        """Write the plan as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def runner_options(self, device: torch.device) -> dict[str, Any]:
        """The options of `make_runner` for one worker on a device."""
        return {
            "incremental": self.incremental,
            "compile": self.compile,
            "cache_memory": self.cache_memory_on(device) if self.incremental else None,
            "verify": self.verify,
        }

    def cache_memory_on(self, device: torch.device) -> int:
        """The memory that one worker may use on its device now, in bytes."""
        import torch

        from fxfault.evaluation.incremental.free_memory import free_memory

        sharing = self.sharing
        if device.type == "cuda" and self.device in ("auto", "cuda"):
            sharing = -(-sharing // torch.cuda.device_count())
        memory = self.cache_memory
        return (free_memory(device) // 4 if memory is None else memory) // sharing
