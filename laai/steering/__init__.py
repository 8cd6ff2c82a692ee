"""steering."""

from laai.steering.file import check_fits
from laai.steering.hooks import Attachment, Edit, attachments, is_compiled, record_last_token, steer
from laai.steering.intervention import Intervention, Key
from laai.steering.positions import Where, prompts_of
from laai.steering.provenance import other_instruction, seen_digests, shared_facts, style_of, unseen
from laai.steering.ridge import AffineMap, RidgeMap

__all__ = [
    "AffineMap",
    "Attachment",
    "Edit",
    "Intervention",
    "Key",
    "RidgeMap",
    "Where",
    "attachments",
    "check_fits",
    "is_compiled",
    "other_instruction",
    "prompts_of",
    "record_last_token",
    "seen_digests",
    "shared_facts",
    "steer",
    "style_of",
    "unseen",
]
