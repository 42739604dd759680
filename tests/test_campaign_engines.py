"""Engines: the same rows wherever trials run, and what becomes of workers that die."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from campaign_tools import (
    outcome,
    slow_at_trial_2,
    small_study,
    stopped_at_half_a_message,
)

from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.workers import (
    fork_server,
    patience,
    process_engine,
    worker_engine,
    worker_history,
)
from fxfault.campaign.workers.engine import Batch
from fxfault.campaign.workers.engines import LocalEngine, make_engine
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.process_engine import ProcessEngine
from fxfault.campaign.workers.trial_runner import TrialRunner
from fxfault.campaign.workers.worker import plain_error, retold
from fxfault.campaign.workers.worker_history import WorkerHistory
from fxfault.errors import ConfigError, DataError, EngineError, ForeignCodeError, InvalidConfigError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The rows of a whole run in one process."""
    path = tmp_path_factory.mktemp("undisturbed") / "study.sqlite"
    run_study(small_study(), path)
    return outcome(path)


def processes_of(engine: ProcessEngine) -> set[int]:
    """The PIDs of an engine's workers that have started, and of its fork server."""
    pids = {worker.process.pid for worker in engine._workers}
    return {pid for pid in (*pids, engine._server and engine._server.pid) if pid is not None}


class Killer:
    """Kills a worker each time that rows were stored, so often; the first time the server too."""

    def __init__(self, engine: ProcessEngine, times: int) -> None:
        self.engine, self.left, self.killed = engine, times, set[int]()

    def __call__(self, progress: Progress) -> None:
        ready = [worker for worker in self.engine._workers if worker.ready]
        if progress.rows and self.left and ready:
            self.left -= 1
            victims = [ready[self.left % len(ready)].process.pid]
            if not self.killed and self.engine._server is not None:
                victims.append(self.engine._server.pid)
            for victim in victims:
                assert victim is not None
                os.kill(victim, signal.SIGKILL)
                self.killed.add(victim)


def test_two_processes_give_the_same_rows(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have our environment: they cannot compile anything, which is told once."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    path = tmp_path / "study.sqlite"
    engine = ProcessEngine(2)
    processes, files = set[int](), list[str]()
    notes: list[str] = []

    def note(progress: Progress) -> None:
        processes.update(processes_of(engine))
        for folder in Path("/proc").glob(f"{max(processes)}/fd"):  # Linux
            files.extend(os.path.realpath(file) for file in folder.iterdir())

    last = run_study(
        small_study(),
        path,
        engine=engine,
        compile=True,
        cache_memory=2**16,
        on_progress=note,
        on_note=notes.append,
    )
    assert last.is_finished
    assert len(processes) == 2 + process_engine.FORKS
    assert not any(file.startswith(str(path)) for file in files)  # Nor its lock.
    assert bool(files) == os.path.isdir("/proc/self/fd")
    assert len(notes) == 2  # Once for both workers; its weights are random.
    assert notes[0].startswith("not compiled: torch.compile needs a C++ compiler")
    assert "no better than chance" in notes[1]
    assert outcome(path) == undisturbed
    assert not any(alive(pid) for pid in processes)


@pytest.mark.usefixtures("quick_servers")
def test_workers_that_are_killed_cost_no_row(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "study.sqlite"
    engine = ProcessEngine(2)
    killer = Killer(engine, times=3)
    assert run_study(small_study(), path, engine=engine, on_progress=killer).is_finished
    assert len(killer.killed) == 3 + process_engine.FORKS
    assert outcome(path) == undisturbed
    assert none_left(killer.killed)


def test_without_a_fork_server_each_worker_is_a_new_python(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_engine, "FORKS", False)
    path, engine, processes = tmp_path / "study.sqlite", ProcessEngine(1), set[int]()

    def note(progress: Progress) -> None:
        processes.update(processes_of(engine))

    assert run_study(small_study(), path, engine=engine, on_progress=note).is_finished
    assert outcome(path) == undisturbed
    assert [alive(pid) for pid in processes] == [False]


@pytest.mark.usefixtures("quick_servers")
def test_faults_of_weights_give_the_same_rows_anywhere(tmp_path: Path) -> None:
    """Whatever the engine, the batch size and the kind of runs."""
    axes = {"memory": ["weights", "activations"], "layers": ["each"], "probability": [2.0]}
    changes = {"axes": {**axes, "injection_type": ["random"]}, "stop": None, "trials": 2}
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        "local": (16, {}),
        "large batches": (24, {}),
        "odd batches": (5, {}),
        "full runs": (16, {"incremental": False}),
        "two workers": (16, {"engine": ProcessEngine(2)}),
    }
    found = {}
    for name, (size, how) in runs.items():
        path = tmp_path / f"{name}.sqlite"
        study = small_study(**changes, training={"batch_size": size})
        assert run_study(study, path, **how).is_finished
        found[name] = outcome(path)
    assert len(found["local"]) == 2 * 2 * 5  # Trials, memories, layers of each.
    for name in runs:
        assert found[name] == found["local"], name


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, which differ from version to version.
def test_two_workers_of_ray_give_the_same_rows(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / "study.sqlite"
    engine: Any = make_engine("ray", workers=2)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        import ray

        if progress.rows and not killed:
            killed.append(progress.trials)
            ray.kill(engine._workers[0].actor)

    assert run_study(small_study(), path, engine=engine, on_progress=kill).is_finished
    assert killed
    assert outcome(path) == undisturbed


def family_of(pid: int) -> list[int]:
    """A process and its children, which a dying machine takes along."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # Linux
    return [pid, *(int(child) for file in lists for child in file.read_text().split())]


@pytest.fixture
def two_machines() -> Iterator[Any]:
    """A cluster of two nodes with a core each, whose raylets are processes of their own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, which differ from version to version.
def test_a_machine_of_the_cluster_that_dies_costs_no_row(
    tmp_path: Path,
    undisturbed: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    two_machines: Any,
) -> None:
    """No machine has room for the worker in its place, which waits: it counts as no death."""
    path = tmp_path / "study.sqlite"
    engine: Any = make_engine("ray", address=two_machines.address, trial_timeout=300.0)
    (second,) = two_machines.worker_nodes
    killed: list[int] = []
    placed: list[bool] = []
    notes: list[str] = []
    start = engine.start

    def start_both(*args: Any) -> Any:
        facts = start(*args)
        while not all(worker.ready for worker in engine._workers):
            engine._hear_all(1.0)
        # From now on, set-up may take no time at all.
        for name in ("_LEAST", "_SET_UPS", "_TRIALS"):
            monkeypatch.setattr(patience, name, 0)
        monkeypatch.setattr(worker_engine, "SAY_AFTER", 0.2)
        monkeypatch.setattr(worker_history, "MOST_DEATHS", 2)
        return facts

    def kill(progress: Progress) -> None:
        if progress.rows and not killed:
            killed.append(progress.trials)
            for pid in family_of(second.all_processes["raylet"][0].process.pid):
                os.kill(pid, signal.SIGKILL)
        placed.append(all(worker.placed for worker in engine._workers))

    monkeypatch.setattr(engine, "start", start_both)
    last = run_study(small_study(), path, engine=engine, on_progress=kill, on_note=notes.append)
    assert last.is_finished
    assert killed[0] < last.trials
    assert placed[0]
    assert not placed[-1]
    assert outcome(path) == undisturbed


# -- what goes wrong ------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def none_left(pids: Iterable[int]) -> bool:
    """Wait until all of these processes are gone: one without a parent is for init to reap."""
    until = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.usefixtures("quick_servers")
def test_an_error_of_a_worker_is_the_error_of_the_run(tmp_path: Path) -> None:
    engine = ProcessEngine(1)
    study = small_study(checkpoint={"path": "absent.pt"})
    with pytest.raises(DataError, match=r"checkpoint 'absent\.pt': there is no such file"):
        run_study(study, tmp_path / "study.sqlite", engine=engine)
    assert engine._workers == []


@pytest.mark.usefixtures("quick_servers")
def test_a_worker_that_always_dies_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_history, "MOST_DEATHS", 2)
    monkeypatch.setattr(process_engine, "work", os._exit)
    # `_exit` takes one argument and gets three: the process ends with status 1.
    with pytest.raises(EngineError, match=r"died 2 times while it was set up \(status 1\)"):
        run_study(small_study(), tmp_path / "study.sqlite", engine=ProcessEngine(1))


@pytest.mark.usefixtures("quick_servers")
def test_a_worker_that_cannot_be_started_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, start = set[int](), ProcessEngine._started

    def first_only(self: ProcessEngine, number: int) -> Any:
        if number:
            processes.update(processes_of(self))
            raise OSError(11, "Resource temporarily unavailable")
        return start(self, number)

    monkeypatch.setattr(ProcessEngine, "_started", first_only)
    with pytest.raises(EngineError, match="worker 1 of 3 cannot be started: Resource temporarily"):
        run_study(small_study(), tmp_path / "study.sqlite", engine=ProcessEngine(3))
    assert processes
    assert not any(map(alive, processes))


DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from campaign_tools import small_study
from fxfault import MSBFlipStrategy, register_fault_model
from fxfault.campaign.driver import run_study
from fxfault.campaign.workers.process_engine import ProcessEngine

class Mine(MSBFlipStrategy):
    name = "of_the_script"

register_fault_model(Mine())
if __name__ == "__main__":
    from test_campaign_engines import processes_of
    engine = ProcessEngine(1)
    def wait(progress):
        if progress.rows:
            print(*processes_of(engine), flush=True)
            time.sleep(60)
    axes = {"layers": ["all"], "injection_type": ["of_the_script"], "probability": [2.0]}
    run_study(small_study(axes=axes), sys.argv[1], engine=engine, on_progress=wait)
"""


def test_no_process_outlives_a_driver_that_is_killed(tmp_path: Path) -> None:
    """The driver is a script with a fault model of its own, which its worker knows too."""
    script = tmp_path / "script.py"
    script.write_text(DRIVER)
    argv = [sys.executable, script, tmp_path / "study.sqlite", Path(__file__).parent]
    driver = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    processes = list(map(int, driver.stdout.readline().split()))
    assert len(processes) == 1 + process_engine.FORKS
    assert all(map(alive, processes))
    driver.kill()
    driver.wait()
    driver.stdout.read()  # All of them have it open: it ends when they have.
    driver.stdout.close()
    assert none_left(processes)


def test_a_worker_gets_no_interrupt_of_the_terminal() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with process_engine._interrupts_blocked():
        held = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.SIGINT in held
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_workers_that_disagree_are_refused() -> None:
    workers = WorkerHistory()
    workers.enlist(0, {"fingerprint": {"code": {"torch": "2.13.0"}}})
    with pytest.raises(
        EngineError,
        match=r"worker 1 does not .* 1 difference: code\.torch: 2\.13\.0 there, 2\.12\.0 here",
    ):
        workers.enlist(1, {"fingerprint": {"code": {"torch": "2.12.0"}}})


def test_deaths_are_counted_for_each_trial() -> None:
    workers = WorkerHistory()
    for number in range(20):
        workers.lose(("cell", number), "killed by SIGKILL")
    for _ in range(worker_history.MOST_DEATHS - 2):
        workers.lose(("cell", 3), "killed by SIGKILL")
    with pytest.raises(EngineError, match=r"5 times at trial 3 of cell \(killed by SIGKILL\)"):
        workers.lose(("cell", 3), "killed by SIGKILL")


def test_deaths_before_a_worker_was_ready_are_counted_in_a_row() -> None:
    workers = WorkerHistory()
    for _ in range(4):
        for _ in range(worker_history.MOST_DEATHS - 1):
            workers.lose(None, "killed by SIGKILL")
        workers.enlist(0, {"fingerprint": {}})


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("no file"), DataError, "no file"),
        (InvalidConfigError(["a: wrong"], "x.yaml"), ConfigError, "x.yaml: a: wrong"),
        (EngineError("no"), EngineError, "no"),
        (KeyError("k"), ForeignCodeError, "KeyError: 'k' (--traceback"),
    ],
)
def test_errors_are_told_as_text(error: Exception, kind: type[Exception], message: str) -> None:
    again = retold(plain_error(error), "worker 2")
    assert isinstance(again, kind)
    assert message in str(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "threads"}, "there are: local, processes, ray"),
        ({"name": "local", "workers": 2}, "'local' takes no workers; that is for processes or ray"),
        ({"name": "processes", "address": "auto"}, "takes no address; that is for ray"),
        ({"name": "local", "trial_timeout": 5.0}, "takes no trial_timeout; that is for processes"),
        ({"name": "ray", "trial_timeout": 0.0}, "trial_timeout: got 0.0, allowed: a number above"),
        ({"name": "processes", "workers": 0}, "workers: got 0, allowed: 1 and up"),
        ({"name": "ray", "gpus_per_trial": -1.0}, "gpus_per_trial: got -1.0, allowed: 0 and up"),
    ],
)
def test_an_engine_that_cannot_be_made_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        make_engine(**arguments)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'fxfault\[ray\]'"):
        make_engine("ray")


def test_an_engine_gives_what_a_bench_gives() -> None:
    plan = Plan(study=small_study().to_dict())
    engine = LocalEngine()
    facts = engine.start(plan, print)
    cell = small_study().cells(facts.sites, facts.bit_widths)[0]
    engine.submit(Batch(cell.key, (3, 1)))
    rows = [*engine.receive(), *engine.receive()]
    trial_runner = TrialRunner(plan)
    trial_runner.run(cell, 2)  # What was run before does not matter.
    assert [row.trial for row in rows] == [3, 1]
    assert all(trial_runner.run(cell, row.trial).same_counts(row) for row in rows)
    assert Plan.from_json(plan.to_json()) == plan


# -- workers that stand still ---------------------------------------------------------------


@pytest.mark.usefixtures("quick_servers")
def test_a_stopped_worker_is_named_and_its_trials_go_to_others(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_engine, "SAY_AFTER", 2.0)
    monkeypatch.setattr(patience, "_LEAST", 4.0)
    monkeypatch.setattr(patience, "_SET_UPS", 0)
    monkeypatch.setattr(patience, "_TRIALS", 0)  # However busy the machine is.
    path = tmp_path / "study.sqlite"
    engine = ProcessEngine(2)
    stopped: list[int] = []
    notes: list[str] = []

    def stop(progress: Progress) -> None:
        victims = [worker for worker in engine._workers if worker.batches]
        if progress.rows and victims and not stopped:
            pid = victims[0].process.pid
            assert pid is not None
            stopped.append(pid)
            os.kill(pid, signal.SIGSTOP)

    last = run_study(small_study(), path, engine=engine, on_progress=stop, on_note=notes.append)
    assert last.is_finished
    assert outcome(path) == undisturbed
    assert not alive(stopped[0])
    told = [note for note in notes if "no sign of life for" in note and " at trial " in note]
    assert any(note.endswith("; another one gets its trials after 4 s") for note in told)
    assert any(note.endswith("; another one gets its trials") for note in told)


HANGING = """
import os, pathlib, signal
try:
    pathlib.Path(os.environ["STOPPED"]).touch(exist_ok=False)
except FileExistsError:
    import fxfault.campaign.workers.preload
else:
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.usefixtures("quick_servers")
@pytest.mark.parametrize("stops_at", ["half a message", "the imports of the server"])
def test_a_worker_that_stops_while_it_is_set_up_keeps_nobody_waiting(
    tmp_path: Path,
    undisturbed: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    stops_at: str,
) -> None:
    monkeypatch.setenv("STOPPED", str(tmp_path / "stopped"))
    if stops_at == "half a message":
        monkeypatch.setattr(process_engine, "work", stopped_at_half_a_message)
    elif process_engine.FORKS:
        (tmp_path / "hanging.py").write_text(HANGING)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(fork_server, "PRELOAD", "hanging")
    monkeypatch.setattr(worker_engine, "SAY_AFTER", 1.0)
    monkeypatch.setattr(patience, "_FIRST_SET_UP", 2.0)
    path = tmp_path / "study.sqlite"
    engine, notes = ProcessEngine(1), list[str]()

    def be_patient(note: str) -> None:
        notes.append(note)
        # One that takes long to import is replaced before it has come to its half message.
        if note.endswith("gets its trials") and (tmp_path / "stopped").exists():
            monkeypatch.setattr(patience, "_FIRST_SET_UP", 300.0)

    assert run_study(small_study(), path, engine=engine, on_note=be_patient).is_finished
    assert outcome(path) == undisturbed
    assert re.match(r"worker 0: no sign of life for \d s while it was set up; another", notes[0])
    assert re.match(r"worker 0: no sign of life for \d s while .*gets its trials$", notes[1])


def test_a_trial_that_takes_too_long_twice_ends_the_study() -> None:
    workers = WorkerHistory()
    for number in range(5):
        workers.lose(("cell", number), "not done after 5 s", worker_history.MOST_TIMEOUTS)
    with pytest.raises(
        EngineError, match=r"trial 3 of cell was not done in time 2 times .*raise --trial-timeout"
    ):
        workers.lose(("cell", 3), "not done after 5 s", worker_history.MOST_TIMEOUTS)


@pytest.mark.usefixtures("quick_servers")
def test_a_timeout_that_a_trial_never_meets_ends_the_study_and_keeps_the_others(
    tmp_path: Path, undisturbed: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_engine, "work", slow_at_trial_2)
    path = tmp_path / "study.sqlite"
    engine = ProcessEngine(1, trial_timeout=2.0)
    with pytest.raises(
        EngineError,
        match=r"^trial 2 of \{.*\} was not done in time 2 times \(not done after \d+ s\); raise --",
    ):
        run_study(small_study(), path, engine=engine)
    kept = outcome(path)
    assert kept
    assert set(kept) < set(undisturbed)


def test_a_stall_of_this_process_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TICK", 0.02)
    monkeypatch.setattr(patience, "SAY_AFTER", 0.1)
    notes = list[str]()
    watch = patience.Watch(notes.append)
    with watch.at("while it was set up"):
        time.sleep(0.05)
    assert notes == []
    for _ in range(2):
        with watch.at("at trial 3 of cell"):
            until = time.monotonic() + 20
            while not notes and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.2)
    watch.close()
    # The second one is no longer than the first.
    assert [re.sub(r"\d+ s", "1 s", note) for note in notes] == [
        "this process: not done for 1 s at trial 3 of cell"
    ]


def test_a_slow_trial_of_the_local_engine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, run = list[str](), TrialRunner.run

    def slow(self: TrialRunner, cell: Any, trial: int) -> Any:
        monkeypatch.setattr(patience, "SAY_AFTER", 0.0)
        monkeypatch.setattr(patience, "_FAR", 0.0)
        until = time.monotonic() + 20
        while not any(" not done " in note for note in notes) and time.monotonic() < until:
            time.sleep(0.01)
        return run(self, cell, trial)

    engine = LocalEngine()
    facts = engine.start(Plan(study=small_study().to_dict()), notes.append)
    cell = small_study().cells(facts.sites, facts.bit_widths)[0]
    engine.submit(Batch(cell.key, (3,)))
    monkeypatch.setattr(TrialRunner, "run", slow)
    assert [row.trial for row in engine.receive()] == [3]
    engine.close()
    assert notes[-1].startswith("this process: not done for ")
    assert notes[-1].endswith(f" s at trial 3 of {cell.key}")


def test_patience_follows_from_what_trials_take() -> None:
    usual = patience.Patience()
    assert usual.limit(at_trial=False, silent=False) is None  # Who knows how long it takes?
    usual.set_up(2.0)
    assert usual.limit(at_trial=True, silent=False) is None
    usual.trial(0.01)
    assert usual.limit(at_trial=True, silent=True) == 90.0
    usual.set_up(100.0)
    assert usual.limit(at_trial=True, silent=False, again=2) == 2000.0
    assert patience.Patience(5.0).limit(at_trial=True, silent=False, again=2) == 5.0


def test_a_driver_that_was_stopped_has_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.5, 3600.0])
    monkeypatch.setattr(patience.time, "monotonic", lambda: next(times))
    clock = patience.Clock()
    assert [clock.look(), clock.look()] == [0.5, 2.5]


PRELOADED = """
import os
import fxfault.campaign.workers.preload
import torch
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
"""


@pytest.mark.skipif(not process_engine.FORKS, reason="workers are not forked here")
def test_what_workers_are_forked_from_has_no_threads_of_torch() -> None:
    """Threads do not survive a fork; OpenBLAS starts its own again, so it is told to have none."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run(
        [sys.executable, "-c", PRELOADED],
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "1 False\n"


@pytest.mark.usefixtures("quick_servers")
@pytest.mark.skipif(not process_engine.FORKS, reason="workers are not forked here")
def test_a_server_that_refuses_as_it_dies_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server may refuse connections before it can be seen that it has ended."""
    server = fork_server.ForkServer()
    server.ensure_running()
    first = server.pid
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))  # Nobody listens there.
    monkeypatch.setattr(server, "_forkserver_address", str(tmp_path / "dead"))
    process = fork_server.ForkedProcess(server, target=os.getpid, args=(), name="worker")
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert server.pid not in (None, first)
    server.stop()
