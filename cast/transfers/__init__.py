"""CAST across tasks: where a vector goes, at what strength, and what it does beside baselines."""

from cast.transfers.choice import TRANSFER_SCALES, Placement, grid
from cast.transfers.course import discard_all
from cast.transfers.cross_task import Transfer, transfer
from cast.transfers.draws import source_development, weighted
from cast.transfers.report import against, read_from, refusal, said_of
from cast.transfers.search import choose_placement, likeliest, placements_by_site, scale_by_layer

__all__ = [
    "TRANSFER_SCALES", "Placement", "Transfer", "against", "choose_placement", "discard_all", "grid", "likeliest",
    "placements_by_site", "read_from", "refusal", "said_of", "scale_by_layer", "source_development", "transfer",
    "weighted",
]  # fmt: skip
