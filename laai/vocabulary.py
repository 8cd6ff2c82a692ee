"""The words of this project that are options too. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

from typing import Literal, get_args

Site = Literal["residual", "heads"]
"""Where a vector is added: a decoder layer's output, or the concatenated head outputs before the output projection."""


Positions = Literal["last_prompt", "generated", "all"]
"""Which tokens are steered: the last one of the prompt, that one and every later one, or all."""


Style = Literal["plain", "chat"]
"""How prompts are written: question and answer lines, or the tokenizer's chat template."""


PrefixBudget = Literal["auto", "off"] | int
"""Memory for frozen prefixes: half of what is free, none, or so many bytes."""


Prior = Literal["zero", "start"]
"""What penalties pull vectors towards."""


SITES: tuple[Site, ...] = get_args(Site)


POSITIONS: tuple[Positions, ...] = get_args(Positions)


STYLES: tuple[Style, ...] = get_args(Style)


PRIORS: tuple[Prior, ...] = get_args(Prior)


Strategy = Literal["random", "cast", "ideal", "vote_k", "facility_location", "k_center"]
"""How source samples are selected."""


Kind = Literal["difference", "few_shot"]
"""What a vector is: few-shot minus zero-shot activations, or the few-shot ones alone."""


STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


KINDS: tuple[Kind, ...] = get_args(Kind)
