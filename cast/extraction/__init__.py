"""CAST vectors: what demonstrations do to activations, extracted, mixed, calibrated and scaled."""

from cast.extraction.calibration import label_prior, shifted_tokens, with_label_prior
from cast.extraction.contrast import Contrast
from cast.extraction.loop import discard, files_of
from cast.extraction.mixing import centred, combined, of_equal_norm, own_seed
from cast.extraction.ridge import fit_ridge
from cast.extraction.samples import CastStart, Samples, draw
from cast.extraction.scale import answer_scores, best_scale
from cast.extraction.vectors import check_encoder, contrast_of, extract, extract_from, extract_own

__all__ = [
    "CastStart", "Contrast", "Samples", "answer_scores", "best_scale", "centred", "check_encoder", "combined",
    "contrast_of", "discard", "draw", "extract", "extract_from", "extract_own", "files_of", "fit_ridge", "label_prior",
    "of_equal_norm", "own_seed", "shifted_tokens", "with_label_prior",
]  # fmt: skip
