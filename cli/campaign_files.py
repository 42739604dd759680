"""The files that `fxfault campaign` writes from a store, checked before the work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fxfault.errors import ConfigError
from fxfault.messages import reason_of
from fxfault.results.outputs import OutputFile, refuse_overwriting
from fxfault.results.pictures.drawing import check_matplotlib
from fxfault.results.reports.campaign_export import check_format


def claim_page(path: Path, store: Path) -> OutputFile:
    """Check that the web page can be written, and that it replaces no file of the store."""
    check_matplotlib("--html")
    output = OutputFile("--html", path)
    refuse_overwriting([output], {"store": store})
    return output


def make_folder(folder: Path) -> None:
    """Make the folder for pictures, and check that they can be drawn."""
    check_matplotlib("--figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--figures: {folder} cannot be made: {reason_of(error)}") from error


def write_figures(
    drawn: Mapping[str, Mapping[str, bytes]], folder: Path, store: Path
) -> list[Path]:
    """Write pictures, which are given by format and name; none may replace a file of the store."""
    contents = {
        OutputFile("--figures", folder / f"{name}.{ending}"): content
        for ending, pictures in sorted(drawn.items())
        for name, content in pictures.items()
    }
    refuse_overwriting(contents, {"store": store})
    return [output.write(content) for output, content in contents.items()]


def claim_exports(given: Mapping[str, Path | None], store: Path) -> dict[str, OutputFile]:
    """Check that the exported files can be written; `given` has a file or None per format."""
    return _claim(given, store, "--csv, --json or --parquet")


def claim_lists(given: Mapping[str, Path | None], store: Path) -> dict[str, OutputFile]:
    """Check that the lists of faults can be written; `given` has a file or None per format."""
    return _claim(given, store, "--csv or --parquet")


def _claim(given: Mapping[str, Path | None], store: Path, flags: str) -> dict[str, OutputFile]:
    outputs = {
        name: OutputFile(f"--{name}", path) for name, path in given.items() if path is not None
    }
    if not outputs:
        raise ConfigError(f"name at least one file to write: {flags}")
    refuse_overwriting(outputs.values(), {"store": store})
    for name in outputs:
        check_format(name)
    return outputs
