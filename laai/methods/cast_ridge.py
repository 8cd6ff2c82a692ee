"""Linear Task Vector (arXiv 2605.20730): what demonstrations would add, by a ridge map from each query's own state."""

from __future__ import annotations

from cast.extraction import best_scale, contrast_of, fit_ridge
from laai.evaluation import Arm
from laai.methods.registry import Setting, register
from laai.prompts import other_examples


@register("cast-ridge")
def cast_ridge(setting: Setting) -> Arm:
    """A map by site and layer of `Setting.own`, fitted on the training examples; its scale is that of `cast`.

    Raises:
        UserError: fewer than 3 training examples.
    """
    own, examples = setting.own, setting.data.splits.train
    (site,) = own.sites
    contrast = contrast_of(
        setting.model, setting.template, examples, other_examples(examples),
        site=site, layers=own.layers, progress=False, keep=True,
    )  # fmt: skip
    scale = best_scale(setting.model, own, setting.prompts)
    return Arm("cast-ridge", scale * fit_ridge(contrast, setting.model, positions=own.positions))
