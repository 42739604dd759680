"""What the tests of `fxfault eval` share: quick arguments, and reading what it wrote."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml

from fxfault.experiment import load_experiment

FAST = ["--config", "digits", "--batch-size", "250"]


def document(name: str = "fault_eval_random.json") -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(name).read_text(encoding="utf-8").splitlines()))


def write_config(**sections: Any) -> str:
    content = load_experiment("digits").to_dict()
    for name, section in sections.items():
        content[name] = {**(content[name] or {}), **section}
    Path("own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return "own.yaml"


def svg_text(picture: bytes) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)<", picture.decode()))
