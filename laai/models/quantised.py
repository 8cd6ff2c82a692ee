"""Bases in 4 bits: what would give vectors a wrong gradient is turned off."""

from __future__ import annotations

from torch import nn

from laai.errors import UserError

PACKS = "support_avx512bf16_for_cpu"
"""bitsandbytes' own mark of a 4-bit layer whose weights its first forward is to rewrite for fast inference."""


def keep_differentiable(llm: nn.Module) -> None:
    """Keep bitsandbytes from rewriting 4-bit weights on CPUs with AVX512-BF16, where nothing is seen on others.

    What it rewrites them for is a kernel that passes no gradient on: vectors would learn from what goes past such
    layers alone.

    Raises:
        UserError: they were rewritten already.
    """
    for name, module in llm.named_modules():
        if hasattr(module, PACKS):
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise UserError(
                    f"expected 4-bit weights that no gradient is lost in, found {name} as bitsandbytes rewrote it for "
                    "inference when the model ran on this CPU: load the model anew and run nothing before"
                )
            setattr(module, PACKS, False)
