"""Contrastive vectors: what demonstrations do to the activations at the last prompt token.

v_l = mean over samples of [ h_l(few-shot prompt) − h_l(zero-shot prompt) ]    (CAST, arXiv 2507.13236)

Both prompts carry the same instruction and query, so that only the demonstrations differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.auto import tqdm

from cast.select import random_samples
from laai.activations import last_token_statistics
from laai.errors import UserError
from laai.intervention import Intervention
from laai.layers import find_decoder
from laai.models import LanguageModel
from laai.prompts import Template, pad_token
from laai.tasks import Example, Task
from laai.teacher import other_examples
from laai.words import Positions, Site, Style


def extract(
    model: LanguageModel,
    source: Task,
    *,
    samples: int = 50,
    shots: int = 5,
    site: Site = "heads",
    layers: Sequence[int] | None = None,
    positions: Positions = "last_prompt",
    style: Style = "plain",
    shared_shots: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> Intervention:
    """Extract the CAST vector of a source task, for all layers in one pass over each prompt.

    Args:
        model: the language model.
        source: the task whose examples are the samples and their demonstrations.
        samples: how many samples; all of the task's examples if it has no more.
        shots: demonstrations in each few-shot prompt, drawn for each sample from all other examples.
        site: `heads` or `residual`.
        layers: which layers; default: all that have the site.
        positions: where the vector will be added when it is used.
        style: prompt style, `plain` or `chat`.
        shared_shots: show all samples the same demonstrations: they are run once then, but the mean is over one draw.
        seed: draws samples and demonstrations.
        batch_size: prompts run at a time.
        progress: show a progress bar.

    Returns:
        One fp32 vector per layer, at scale 1, with the settings in its metadata.

    Raises:
        UserError: fewer than two examples, or sizes below one.
    """
    chosen, demonstrations = random_samples(source.examples, samples, shots, seed, shared_shots)
    return extract_from(
        model, Template(model.tokenizer, source, style), chosen, demonstrations,
        site=site, layers=layers, positions=positions, batch_size=batch_size, progress=progress,
        settings={
            "samples": len(chosen), "shots": len(demonstrations[0]), "shared_shots": shared_shots, "seed": seed
        },
    )  # fmt: skip


def extract_own(
    model: LanguageModel, template: Template, examples: Sequence[Example], **options: object
) -> Intervention:
    """The CAST vector of a few labelled examples themselves: each one's query behind all the others.

    `options` as in `extract_from`. Raises UserError for fewer than two examples.
    """
    if len(examples) < 2:
        raise UserError(
            f"a CAST start from the task's own examples needs at least 2 of them, not {len(examples)}: "
            "take another task as source, or init=zero"
        )
    others = other_examples(examples)
    settings = {"samples": len(examples), "shots": len(others[0]), "own": True}
    return extract_from(model, template, examples, others, settings=settings, **options)  # type: ignore[arg-type]


def extract_from(
    model: LanguageModel,
    template: Template,
    samples: Sequence[Example],
    demonstrations: Sequence[Sequence[Example]],
    *,
    site: Site = "heads",
    layers: Sequence[int] | None = None,
    positions: Positions = "last_prompt",
    batch_size: int = 16,
    progress: bool = True,
    settings: dict[str, object] | None = None,
) -> Intervention:
    """Extract from given samples, each with its own demonstrations; otherwise as `extract`."""
    for sample, shown in zip(samples, demonstrations, strict=True):
        if any(shot.input == sample.input for shot in shown):
            raise UserError(f"the sample {sample.input!r} stands among its own demonstrations")
    layers = find_decoder(model.llm).steerable(site) if layers is None else list(layers)
    few_shot = [template.encode(s.input, shown) for s, shown in zip(samples, demonstrations, strict=True)]
    zero_shot = [template.encode(s.input) for s in samples]
    with tqdm(total=2 * len(samples), desc=f"CAST from {template.task.name}", disable=not progress, leave=False) as bar:
        behind_shots, alone = (
            last_token_statistics(
                model.llm,
                prompts,
                site,
                layers,
                pad=pad_token(model.tokenizer),
                batch_size=batch_size,
                on_batch=bar.update,
            )
            for prompts in (few_shot, zero_shot)
        )
    zeros = Intervention.zeros(model, site, layers, positions=positions)
    cast = {"source": template.task.name, "style": template.style} | (settings or {})
    return zeros.with_vectors(
        {(site, i): behind_shots.mean[i] - alone.mean[i] for i in layers}, metadata=zeros.metadata | {"cast": cast}
    )
