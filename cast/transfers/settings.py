"""What a transfer does, setting by setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cast.transfers.choice import TRANSFER_SCALES
from laai.errors import UserError
from laai.tasks import Task
from laai.vocabulary import SITES, Site, Style


@dataclass(frozen=True)
class TransferSettings:
    """Settings of `transfer`.

    Raises:
        UserError: no test query.
    """

    development: int = 20
    """Labelled target examples on which site, layers and scale are chosen; 0 to choose them on some examples of the
    source that were no samples (`SOURCE_DEVELOPMENT` of the first, if there are several). No vector is expected to help
    on fewer than `cast.transfers.choice.FEWEST`."""
    test: int | None = 100
    """Target queries at most, at least 1; None for all."""
    samples: int = 50
    """Samples of each source, and the examples that the baseline `cross-task few-shot` shows of the source with the
    largest weight (the first of several), as far as they fit: see `fitting`."""
    shots: int = 5
    """Demonstrations in few-shot prompts: those of the extraction, and those of the baseline `few-shot`, as far as they
    fit."""
    scales: Sequence[float] = TRANSFER_SCALES
    """Strengths to choose from."""
    site: Site | Sequence[Site] = SITES
    """`heads`, `residual`, or both, of which the placement takes one."""
    refuse: bool = True
    """Leave the model as it is where the vector is not expected to help (`Placement.helps`)."""
    calibrate: bool = True
    """Add the `label_prior` that makes labels equally likely over the development examples, to the vector and to the
    controls, where all examples of the target have the same labels. The baseline `label prior` is that of the model
    without a vector."""
    by_layer: bool = False
    """Look for a scale for each sixth of the depth too, see `scale_by_layer`; at `heads` alone."""
    centre: Sequence[Task | str] = ()
    """Tasks whose mean vector is taken off, see `centred`."""
    baselines: Sequence[str] | None = None
    """Which of `cast.transfers.baselines.BASELINES` to measure beside it; None for all."""
    style: Style = "plain"
    """Prompt style."""
    seed: int = 0
    """Draws everything."""

    def __post_init__(self) -> None:
        """Refuse a transfer that nothing would be known of."""
        if self.test is not None and self.test < 1:
            raise UserError(
                f"expected at least 1 test query, found {self.test}: what a transfer gives is measured on them"
            )
