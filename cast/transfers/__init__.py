"""transfers."""

from cast.transfers.choice import FEWEST, SCALES, Choice, grid
from cast.transfers.cross_task import discard_all, source_development, transfer, weighted
from cast.transfers.layer_scales import scale_by_layer
from cast.transfers.place import choices_by_site, choose_place, likeliest
from cast.transfers.report import against, read_from, refusal, said_of

__all__ = [
    "FEWEST",
    "SCALES",
    "Choice",
    "against",
    "choices_by_site",
    "choose_place",
    "discard_all",
    "grid",
    "likeliest",
    "read_from",
    "refusal",
    "said_of",
    "scale_by_layer",
    "source_development",
    "transfer",
    "weighted",
]
