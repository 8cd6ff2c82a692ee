"""Settings of `LAAIModule` that make no sense are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from laai.errors import UserError
from laai.files import check_name
from laai.vocabulary import PRIORS, PrefixBudget


def check_options(
    *, init: str, prior: str, schedule: str, prefix_cache: PrefixBudget, dtype: str, **strengths: float
) -> None:
    """Check what the command line's own types do not; `strengths` must not be negative.

    Raises:
        UserError: names the option, and what it may be.
    """
    from transformers import SchedulerType  # brings peft along: `--help` does not wait for it

    for name, value in strengths.items():
        if not value >= 0:
            raise UserError(f"{name} must not be negative, found {value}")
    if isinstance(prefix_cache, int) and prefix_cache < 0:
        raise UserError(f"prefix_cache must be auto, off or a number of bytes, found {prefix_cache}")
    if prior not in PRIORS:
        raise UserError(f"prior must be one of {', '.join(PRIORS)}, not {prior!r}")
    check_name(init)
    if init not in ("zero", "random", "cast") and not Path(init).is_file():
        raise UserError(f"init must be zero, random, cast or an intervention file, found no file at {init!r}")
    if schedule not in (names := [kind.value for kind in SchedulerType]):
        raise UserError(f"schedule must be one of {', '.join(names)}, not {schedule!r}")
    if dtype not in (names := ["float32", "bfloat16", "float16", "auto"]):
        raise UserError(f"dtype must be one of {', '.join(names)}, not {dtype!r}")
