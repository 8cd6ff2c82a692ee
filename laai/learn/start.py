"""Where learning starts: zero, random or CAST vectors, a file, or an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cast.extraction import CastStart, combined, extract, extract_own
from laai.errors import UserError
from laai.learn.recipe import Recipe
from laai.models import LanguageModel
from laai.runtime import FewShotDataModule
from laai.steering import Intervention, check_fits
from laai.tasks import Task, excluding, load_task, without

SEVERAL = (
    *("antonym", "capital-country", "country-capital", "country-language"),
    *("english-french", "present-past", "singular-plural", "word-sentiment"),
)
"""Built-in tasks, of which the next four start a run with a single example."""


def others_of(name: str) -> list[str]:
    """The built-in tasks of `SEVERAL` that come after this one, around to the one before it."""
    at = SEVERAL.index(name) if name in SEVERAL else 0
    return [task for task in SEVERAL[at:] + SEVERAL[:at] if task != name]


def source_tasks(recipe: Recipe, data: FewShotDataModule, cast: CastStart) -> list[Task]:
    """The tasks that a CAST vector for this run comes from, less its test and validation inputs, which they may share.

    Nothing where it comes from the training examples themselves.

    Raises:
        UserError: a source task cannot be read, or little of it is left.
    """
    held_out = {example.input for example in (*data.splits.test, *data.splits.validation)}
    if recipe.sources == ["auto"] and data.num_examples == 1:
        tasks = [load_task(name) for name in others_of(data.task.name)]
        tasks = [task for task in tasks if len(excluding(task.examples, held_out)) > cast.shots][:4]
    else:
        tasks = [] if recipe.sources in (["own"], ["auto"]) else [load_task(name) for name in recipe.sources]
    return [without(task, held_out) for task in tasks]


def cast_vector(
    model: LanguageModel, recipe: Recipe, data: FewShotDataModule, cast: CastStart, sources: Sequence[Task]
) -> Intervention:
    """The CAST vector of the training examples, or of `sources`, at scale 1 on all layers that have the site.

    Raises:
        UserError: too few examples to extract from.
    """
    options: dict[str, Any] = {"site": recipe.site, "positions": recipe.positions}
    if not sources:
        return extract_own(model, data.template(model.tokenizer), data.splits.train, **options)
    options |= {"samples": max(1, cast.samples // len(sources)), "shots": cast.shots, "style": data.style}
    options |= {"shared_shots": cast.shared_shots, "seed": data.seed}
    return combined([extract(model, source, **options) for source in sources], [1 / len(sources)] * len(sources))


def random_vectors(zeros: Intervention, model: LanguageModel, size: Mapping[int, float], seed: int) -> Intervention:
    """Random directions in place of `zeros`; `size`: layer -> root mean square of a vector's entries."""
    units = Intervention.random(model, zeros.sites[0], zeros.layers, seed=seed)
    return zeros.with_vectors({key: size[key[1]] * len(v) ** 0.5 * v for key, v in units.items()})


def in_place(zeros: Intervention, start: Intervention, model: LanguageModel) -> Intervention:
    """The vectors of a start in place of `zeros`, at scale 1.

    Raises:
        UserError: it was made for another model, or lacks a layer.
    """
    check_fits(start, model, "the start")
    have = {key: start.scale * v.detach() for key, v in start.items()}
    if missing := [key[1] for key, _ in zeros.items() if key not in have]:
        site = zeros.sites[0]
        raise UserError(f"the start has no vector at {site} on layers {missing}; choose others by layers")
    return zeros.with_vectors({key: have[key] for key, _ in zeros.items()})
