"""Contrastive vectors: what demonstrations do to the activations at the last prompt token.

v_l = mean over samples of [ h_l(few-shot prompt) − h_l(zero-shot prompt) ]    (CAST, arXiv 2507.13236)

Both prompts carry the same instruction and query, so that only the demonstrations differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cast.extraction.contrast import Contrast
from cast.extraction.loop import run_all
from cast.extraction.samples import draw
from cast.selection import encoder_embeddings, state_embeddings
from laai.errors import UserError
from laai.models import LanguageModel
from laai.prompts import Template, other_examples
from laai.runtime import Trainer
from laai.steering import Intervention, Key
from laai.tasks import Example, Task
from laai.vocabulary import KINDS, SITES, Kind, Positions, Site, Strategy, Style


def extract(
    model: LanguageModel, source: Task, *, samples: int = 50, shots: int = 5, strategy: Strategy = "random",
    encoder: str | None = None, shared_shots: bool = False, from_selected: bool = False, style: Style = "plain",
    seed: int = 0, progress: bool = True, **options: Any,
) -> Intervention:  # fmt: skip
    """Extract the CAST vector of a source task, for all layers in one pass over each prompt.

    Args:
        source: the task whose examples are the samples and their demonstrations.
        samples: all of the task's examples if it has no more.
        shots: demonstrations in each few-shot prompt, drawn for each sample from all other examples.
        strategy: how the samples are selected, see `cast.selection`.
        encoder: a sentence encoder (hub id or folder) to compare examples by, for strategies other than `random`;
            default: the language model's own states.
        shared_shots: show all samples the same demonstrations: they are run once then, but the mean is over one draw.
        from_selected: draw demonstrations from the samples alone, so that no other label is needed.
        style: prompt style, `plain` or `chat`.
        seed: draws samples and demonstrations.
        options: further arguments of `extract_from`: site, layers, positions, preserve_norm, kind, batch_size,
            trainer, partial. The files of `partial` stay: call `cast.extraction.loop.discard` once the vector is saved.

    Returns:
        One fp32 vector per site and layer, at scale 1, with the settings in its provenance and, of a random draw of
        more examples with demonstrations of their own, the `steadiness`: the cosine to expect with the vector of
        another draw.

    Raises:
        UserError: fewer than two examples, sizes below one, an encoder for `random`, which compares nothing, a trainer
            whose precision would convert the model, or partial files of another extraction.
    """
    check_encoder(encoder, strategy)

    def embed(examples: Sequence[Example]) -> NDArray[np.floating]:
        texts = [example.input for example in examples]
        if encoder is None:
            return state_embeddings(model, texts, progress=progress)
        return encoder_embeddings(encoder, texts, progress=progress, device=model.llm.device)

    drawn = draw(
        source.examples, samples, shots, seed,
        strategy=strategy, embed=embed, shared=shared_shots, from_selected=from_selected,
    )  # fmt: skip
    settings: dict[str, object] = {"samples": len(drawn.samples), "shots": len(drawn.demonstrations[0]), "seed": seed}
    settings |= {"strategy": strategy, "encoder": encoder}
    settings |= {"shared_shots": shared_shots, "from_selected": from_selected}
    template = Template(model.tokenizer, source, style)
    random = strategy == "random" and not (shared_shots or from_selected) and len(drawn.samples) < len(source.examples)
    return extract_from(model, template, *drawn, progress=progress, settings=settings, independent=random, **options)


def check_encoder(encoder: str | None, strategy: Strategy) -> None:
    """Refuse an encoder that nothing would be compared by.

    Raises:
        UserError: it is given for `random`.
    """
    if encoder is not None and strategy == "random":
        raise UserError(f"the strategy random compares no samples: choose another, or leave out the encoder {encoder}")


def extract_own(model: LanguageModel, template: Template, examples: Sequence[Example], **options: Any) -> Intervention:
    """The CAST vector of two or more labelled examples: each is a sample, and the others are its demonstrations.

    Args:
        options: further arguments of `extract_from`.

    Returns:
        One fp32 vector (width,) per site and layer, at scale 1.

    Raises:
        UserError: fewer than two examples, or what `extract_from` raises.
    """
    if len(examples) < 2:
        raise UserError(
            f"a CAST start from the task's own examples needs at least 2 of them, not {len(examples)}: "
            "take another task as source, or init=zero"
        )
    others = other_examples(examples)
    settings = {"samples": len(examples), "shots": len(others[0]), "own": True}
    return extract_from(model, template, examples, others, settings=settings, **options)


def extract_from(
    model: LanguageModel, template: Template, samples: Sequence[Example], demonstrations: Sequence[Sequence[Example]],
    *, positions: Positions = "last_prompt", preserve_norm: bool = False, kind: Kind = "difference",
    settings: Mapping[str, object] | None = None, independent: bool = False, **options: Any,
) -> Intervention:  # fmt: skip
    """Extract from given samples, each with its own demonstrations.

    Args:
        samples: whose prompts are read.
        demonstrations: for each sample, what its few-shot prompt shows.
        positions: where the vector will be added when it is used.
        preserve_norm: the vector will leave the norm of each activation as it is.
        kind: `difference`, or `few_shot` for the mean few-shot activation alone (an ablation).
        settings: facts for the provenance.
        independent: the samples are a random draw of more, each with demonstrations of its own: the provenance says how
            steady the vector is then, see `Contrast.steadiness`.
        options: further arguments of `contrast_of`: site, layers, batch_size, trainer, partial, progress.

    Raises:
        UserError: a sample stands among its own demonstrations, or there is no such site, layer or kind.
    """
    if kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    contrast = contrast_of(model, template, samples, demonstrations, **options)
    attention = {i: model.decoder.layer(i).heads for site, i in contrast.widths if site == "heads"}
    heads = {i: heads.count for i, heads in attention.items() if heads is not None}
    facts = {**(contrast.provenance.cast or {}), "kind": kind} | dict(settings or {})
    if independent and kind == "difference":  # few-shot states alone are alike whatever is shown
        facts["steadiness"] = contrast.steadiness()
    return Intervention(
        contrast.means(difference=kind == "difference"),
        positions=positions, preserve_norm=preserve_norm, num_heads=heads,
        provenance=replace(contrast.provenance, cast=facts),
    )  # fmt: skip


def contrast_of(
    model: LanguageModel, template: Template, samples: Sequence[Example], demonstrations: Sequence[Sequence[Example]],
    *, site: Site | Sequence[Site] = "heads", layers: Sequence[int] | None = None, batch_size: int = 16,
    trainer: Trainer | None = None, partial: Path | None = None, progress: bool = True, keep: bool = False,
) -> Contrast:  # fmt: skip
    """The sums behind a vector: means and variances by site and layer; with `keep`, every sample's activations.

    Args:
        samples, demonstrations: as of `extract_from`.
        site: `heads`, `residual`, or both.
        layers: which layers; default: all that have the site.
        batch_size: pairs of prompts run at a time on each device.
        trainer: a Lightning trainer whose devices share the samples; None to run where the model is.
        partial: files to go on from after an interruption, see `cast.extraction.loop.run_all`.

    Raises:
        UserError: a sample stands among its own demonstrations, there is no such site or layer, no batch, the trainer's
            precision would convert the model, or `partial` holds another extraction.
    """
    for sample, shown in zip(samples, demonstrations, strict=True):
        if any(shot.input == sample.input for shot in shown):
            raise UserError(f"the sample {sample.input!r} stands among its own demonstrations")
    if batch_size < 1:
        raise UserError(f"expected batch_size as at least 1, found {batch_size}")
    keys = _keys(model, [site] if isinstance(site, str) else site, layers)
    few_shot = [template.encode(s.input, shown) for s, shown in zip(samples, demonstrations, strict=True)]
    zero_shot = [template.encode(s.input) for s in samples]
    precision = "32-true" if trainer is None else str(trainer.precision)
    contrast = Contrast(model, few_shot, zero_shot, keys, keep, precision)
    labels = {shot.input for shown in demonstrations for shot in shown}  # a sample's own is not read
    facts = {"source": template.task.name, "style": template.style, "kind": "difference", "labels": len(labels)}
    facts["instruction"] = template.task.instruction
    seen = contrast.provenance.having_seen(labels.union(sample.input for sample in samples))
    contrast.provenance = replace(seen, cast=facts)
    name = f"CAST from {template.task.name}" if progress else None
    run_all(contrast, model, batch_size=batch_size, trainer=trainer, partial=partial, name=name)
    return contrast


def _keys(model: LanguageModel, sites: Sequence[Site], layers: Sequence[int] | None) -> list[Key]:
    if unknown := [site for site in sites if site not in SITES]:
        raise UserError(f"site must be one of {', '.join(SITES)}, not {unknown[0]!r}")
    return [(site, i) for site in sites for i in (model.decoder.steerable(site) if layers is None else layers)]
