"""Run a study in one call, and read what it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfault.campaign import driver
from fxfault.campaign.estimates.intervals import wilson
from fxfault.campaign.studies.study import Study
from fxfault.campaign.workers.engine import Engine
from fxfault.campaign.workers.engines import LocalEngine, make_engine
from fxfault.campaign.workers.given import OBJECT, Given
from fxfault.config.yaml_files import load_named
from fxfault.errors import ConfigError
from fxfault.evaluation.full.model_state import in_eval_mode
from fxfault.messages import got
from fxfault.results.calls.bar import new_bar
from fxfault.results.calls.given import (
    batches_of,
    count_of,
    metric_of,
    name_of_data,
    on_device,
    plain_model,
    share_of,
)
from fxfault.results.reports.campaign_findings import read_findings
from fxfault.results.study import StudyResult

if TYPE_CHECKING:
    import torch
    from torch import nn

# Sections of a study that name what `model`, `loader` and `metric` give.
_NAMING = {"model": "model", "checkpoint": "model", "dataset": "loader", "metric": "metric"}


def run_study(
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    metric: Any = None,
    batch: Callable[[Any], Any] | None = None,
    workers: int | None = None,
    engine: str | Engine | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    incremental: bool = True,
    freeze: bool = True,
    compile: bool = False,
    cache_memory: int | None = None,
    verify: float | None = None,
    confidence: float = 95.0,
    progress: bool = True,
) -> StudyResult:
    """Run the trials of a study that its store lacks, and estimate from all of them.

    Every finished trial is in the store: a call that was interrupted goes on where it ended. The
    trials are those of `fxfault campaign run`.

    A study names its network and data, so that other processes can build them. In place of these,
    `model` and `loader` may be objects of yours; such a study runs in this process alone.

    >>> import tempfile
    >>> study = {**Study.from_yaml("digits_study").to_dict(), "stop": None, "trials": 2}
    >>> study["axes"] = {"layers": ["all"], "probability": [1.0, 5.0], "injection_type": ["random"]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = run_study(study, f"{folder}/study.sqlite")
    >>> found.to_pandas()[["probability", "trials"]].values.tolist()
    [[1.0, 2.0], [5.0, 2.0]]

    Args:
        study: a study, its mapping, its YAML file, or the name of a bundled one.
        store: the file of the trials; made if it does not exist.
        model: a network, as for `fxfault.evaluate`, if the study names none.
        loader: batches, as for `fxfault.evaluate`, if the study names no data.
        metric: what to measure, as for `fxfault.evaluate`; only with `model`, and if the study
            names none.
        batch: as for `fxfault.evaluate`; only with `loader`.
        workers: number of processes; by default the trials run in this one.
        engine: `local`, `processes` or `ray`, or an engine of
            `fxfault.campaign.workers.engines.make_engine`; by default as `workers` says.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; by default `auto`, or where `model` is.
        threads: number of torch threads of each worker process.
        incremental: recompute only what faults change; the trials are the same.
        freeze: quantise weights once; the trials are the same.
        compile: run compiled code if faults strike most of the network; the trials are the same.
        cache_memory: bytes for activations that trials start from; by default a quarter of the free
            memory.
        verify: share of the batches to repeat in full, in percent; by default as many as take
            little time.
        confidence: confidence of all intervals, in percent.
        progress: show a bar, on a terminal or in a notebook.

    Raises:
        ConfigError: a value is not allowed, or scipy is not installed.
        StoreError: the store cannot be used, or holds trials of something else.
        FxFaultError: something that the study names cannot be used, or a trial fails.
    """
    wilson(0, 1)  # Raises now, and not after the work, if scipy is missing.
    if not isinstance(store, (str, os.PathLike)):
        raise ConfigError(f"store: got {got(store)}, allowed: the path of a file")
    path = Path(
        os.path.abspath(os.path.expanduser(store))
    )  # The user's code may change the folder.
    if cache_memory is not None:
        count_of(cache_memory, "cache_memory", least=0)
    if verify is not None:
        share_of(verify, "verify")
    if workers is not None:
        count_of(workers, "workers")
    settings: dict[str, Any] = {
        "threads": threads,
        "incremental": incremental,
        "freeze": freeze,
        "compile": compile,
        "cache_memory": cache_memory,
        "verify": verify,
        "device": "auto" if device is None else str(device),
    }
    with ExitStack() as during:
        if model is None:
            _refuse_beside_names(loader, metric, batch)
            read, made = _read_study(study), _engine(engine, workers)
        else:
            _refuse_other_processes(engine, workers)
            content = _content(study)
            read, made, settings["device"] = _of_objects(
                content, model, loader, metric, batch, device, during
            )
        bar = _Bar() if progress else None
        if bar is not None:
            during.callback(bar.close)
        driver.run_study(read, path, engine=made, on_progress=bar, **settings)
    return StudyResult(read_findings(path, confidence))


def _read_study(given: Any) -> Study:
    return given if isinstance(given, Study) else Study.from_dict(*_content(given))


def _content(given: Any) -> tuple[Mapping[str, Any], str | None]:
    """The content of a study, and the name of its file if there is one."""
    if isinstance(given, (str, os.PathLike)):
        return load_named("studies", os.fspath(given))
    if isinstance(given, Study):
        return given.to_dict(), None
    if not isinstance(given, Mapping):
        allowed = "a Study, its mapping, the path of a YAML file, or the name of a bundled study"
        raise ConfigError(f"study: got {got(given)}, allowed: {allowed}")
    return given, None


def _engine(engine: str | Engine | None, workers: int | None) -> Engine:
    if engine is None:
        engine = "local" if workers in (None, 1) else "processes"
        workers = None if engine == "local" else workers
    return make_engine(engine, workers=workers) if isinstance(engine, str) else engine


def _refuse_beside_names(loader: Any, metric: Any, batch: Any) -> None:
    given = {"loader": loader, "metric": metric, "batch": batch}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ConfigError(
            f"{', '.join(names)}: given without `model`; give the network as well, or let the "
            "study name all of them"
        )


def _refuse_other_processes(engine: Any, workers: Any) -> None:
    if engine in (None, "local") and workers in (None, 1):
        return
    raise ConfigError(
        "model: other processes cannot have it, as layers of Brevitas cannot be sent; leave "
        "`workers` and `engine` out, or let the study name the network as "
        "`model: {name: package.module:function}`"
    )


def _of_objects(
    content: tuple[Mapping[str, Any], str | None],
    model: Any,
    loader: Any,
    metric: Any,
    batch: Any,
    device: Any,
    during: ExitStack,
) -> tuple[Study, Engine, str]:
    """Make the study of a network and data that are objects, its engine, and its device."""
    if loader is None:
        raise ConfigError("loader: missing; with `model`, give the batches as well")
    sections, source = content
    named = [name for name in ("model", "checkpoint", "dataset") if sections.get(name) is not None]
    named += ["metric"] if metric is not None and sections.get("metric") is not None else []
    if named:
        raise ConfigError(
            f"study: it has the section{'' if len(named) == 1 else 's'} {', '.join(named)}, which "
            f"`{_NAMING[named[0]]}` replaces; leave one of the two out"
        )
    plain, _ = plain_model(model)
    placed, where = on_device(plain, device)
    wanted = sections.get("metric") if metric is None else metric
    made = metric_of(wanted)
    objects: dict[str, Any] = {
        "model": {"name": f"{OBJECT}{type(plain).__name__}"},
        "dataset": {"name": f"{OBJECT}{name_of_data(loader)}"},
    }
    if made is not None:
        objects["metric"] = (
            wanted if isinstance(wanted, (str, Mapping)) else {"name": f"{OBJECT}{made.name}"}
        )
    read = Study.from_dict({**sections, **objects}, source)
    given = Given(placed, batches_of(loader, placed, batch), made)
    during.enter_context(in_eval_mode(placed))
    return read, LocalEngine(given), str(where)


class _Bar:
    """Shows how far a study is."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown = 0

    def __call__(self, study: driver.Progress) -> None:
        if self._bar is None:
            self._bar = new_bar(study.wanted, " trials")
            if self._bar is None:
                return
            self._bar.initial = self._bar.n = self._shown = study.earlier
        self._bar.total = study.wanted  # The stop rule may ask for more.
        self._bar.update(study.trials - self._shown)
        self._shown = study.trials

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
