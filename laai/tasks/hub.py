"""Tasks from data sets of the Hugging Face hub, or from a local data-set folder, through ``datasets``."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laai.errors import UserError
from laai.tasks.examples import Example, Task
from laai.tasks.repeats import dedupe
from laai.tasks.rows import check_columns, to_example

OWN = ("split", "test_split", "revision")
"""Columns that say which part of a data set is read."""
Rows = Any  # a datasets.Dataset, which has no types of its own


def load_hub(name: str, columns: Mapping[str, str]) -> Task:
    """Load ``name[/config]`` of the hub, or ``/a/folder`` of this machine.

    A ``label`` that is a ClassLabel gives the choices, and the output is its name; rows without a label (-1) are left
    out with a warning. ``columns`` also takes ``split`` ("train" by default), ``test_split`` and ``revision``.

    Raises:
        UserError: the data set is not found or cannot be reached, or its rows are not as expected.
    """
    where = f"hf:{name}"
    check_columns(columns, where, also=OWN)
    fields = {field: column for field, column in columns.items() if field not in OWN}
    revision = columns.get("revision")
    train = _examples(_dataset(name, columns.get("split", "train"), revision), fields, where)
    test = None
    if split := columns.get("test_split"):
        test = tuple(_examples(_dataset(name, split, revision), fields, f"{where}, {split}"))
    return Task(name.strip("/").replace("/", "-"), tuple(train), test, source=where)


def _candidates(name: str) -> list[tuple[str, str | None]]:
    """What a name can mean: data set and configuration, the likeliest first."""
    parts = name.split("/")
    if Path(name).is_absolute():
        return [(name, None)]
    if not all(parts) or len(parts) > 3:
        raise UserError(f"hf:{name}: expected hf:name, hf:org/name, hf:name/config, hf:org/name/config or hf:/a/folder")
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    return [(name, None)] + ([(parts[0], parts[1])] if len(parts) == 2 else [])


def _dataset(name: str, split: str, revision: str | None = None) -> Rows:
    """One split of the first meaning of the name that loads."""
    candidates = _candidates(name)
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise UserError(f"hf:{name}: no such folder; check the path")
    datasets = importlib.import_module("datasets")  # takes seconds

    errors = []
    for path, config in candidates:
        try:
            if any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(path)
                found: Rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
            else:
                found = datasets.load_dataset(path, config, split=split, revision=revision)
            return found
        except Exception as error:  # whatever the loaders of some forty formats raise
            errors.append(error)
            if isinstance(error, ConnectionError) and not datasets.config.HF_HUB_OFFLINE:
                break  # the other meaning would only fail as slowly; offline it may be in the cache
    reason = " ".join(str(errors[0]).split())[:300] or type(errors[0]).__name__
    if isinstance(errors[0], ConnectionError):
        cure = "check the network, or set HF_HUB_OFFLINE=1 to use what is in the cache"
    else:
        cure = "check the name, the configuration and the split"
    raise UserError(f"hf:{name}: cannot load split {split!r} ({reason}); {cure}") from errors[0]


def _examples(dataset: Rows, columns: Mapping[str, str], where: str) -> list[Example]:
    """The rows of a data set as examples, each input once."""
    label = columns.get("label", "label")
    if "output" in columns and "label" not in columns and label in dataset.column_names:
        dataset = dataset.remove_columns(label)  # not asked for, and perhaps about something else
    names = getattr(dataset.features.get(label), "names", None)
    choices = tuple(names) if names else None
    places, examples, unlabelled = [], [], 0
    for number, row in enumerate(dataset):
        if choices and row[label] in (-1, None):
            unlabelled += 1
            continue
        places.append(f"{where}, row {number}")
        examples.append(to_example(row, places[-1], columns, choices))
    if unlabelled:
        warnings.warn(f"{where}: {unlabelled} rows without a label left out", stacklevel=3)
    if not examples:
        raise UserError(f"{where}: no labelled rows; choose another split")
    return dedupe(examples, places, strict=False)
