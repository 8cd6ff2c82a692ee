"""The words of this package that are options too. Nothing heavy is imported here, so that `--help` answers at once."""

from typing import Literal, get_args

Strategy = Literal["random", "cast", "ideal", "vote_k", "facility_location", "k_center"]
"""How source samples are selected."""

Kind = Literal["difference", "few_shot"]
"""What a vector is: few-shot minus zero-shot activations, or the few-shot ones alone."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
KINDS: tuple[Kind, ...] = get_args(Kind)
