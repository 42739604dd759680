"""What a worker of a study is told: the study, its device, and what is done for speed."""

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
    """What a worker needs to know to set itself up: plain values. Rows depend on the study alone.

    >>> Plan(study={}, incremental=False, verify=5.0)
    Traceback (most recent call last):
    ...
    fxfault.errors.ConfigError: verify: nothing is to be compared, as every run is a full one \
(--no-incremental, without --compile)

    Attributes:
        study: as `Study.to_dict` gives it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; of several GPUs, `auto` and `cuda` give worker
            n the one that its turn comes to.
        threads: of torch; None leaves them as they are.
        incremental: do again only what faults change (`fxfault.evaluation.incremental.runner`).
        freeze: quantise weights once.
        compile: run compiled code if faults strike most (`fxfault.evaluation.compiled_runner`).
        cache_memory: bytes for activations that incremental runs start from, of all workers that
            share a machine (or a GPU) together; None: a quarter of what is free.
        verify: share of the batches that are run in full and without compiled code, too, in
            percent; other predictions are an error. None: one batch of each cell, as far as that
            takes little time (`fxfault.evaluation.full.verification`).
        sharing: workers on the machine.
        folder: where relative paths start; None: in the current one.
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
        """Refuse what does not go together.

        Raises:
            ConfigError: something does not, or is out of its range.
        """
        # Both import Brevitas, which takes seconds: a driver with workers needs it for no more.
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
        """The plan as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def runner_options(self, device: torch.device) -> dict[str, Any]:
        """The options of `make_runner` for a worker on a device."""
        return {
            "incremental": self.incremental,
            "compile": self.compile,
            "cache_memory": self.cache_memory_on(device) if self.incremental else None,
            "verify": self.verify,
        }

    def cache_memory_on(self, device: torch.device) -> int:
        """Bytes that one worker may keep on its device now."""
        import torch

        from fxfault.evaluation.incremental.free_memory import free_memory

        sharing = self.sharing
        if device.type == "cuda" and self.device in ("auto", "cuda"):
            sharing = -(-sharing // torch.cuda.device_count())
        memory = self.cache_memory
        return (free_memory(device) // 4 if memory is None else memory) // sharing
