"""What steers a frozen model: vectors and ridge maps, the hooks that add them, their file and their provenance."""

from laai.steering.hooks import Attachment, Edit, Key, attachments, is_compiled, record_last_token, steer
from laai.steering.intervention import Intervention
from laai.steering.positions import Where, prompts_of
from laai.steering.provenance import Provenance
from laai.steering.ridge import AffineMap, RidgeMap
from laai.steering.rows import attach_rows
from laai.steering.steering import Steering, check_fits, load

__all__ = [
    "AffineMap", "Attachment", "Edit", "Intervention", "Key", "Provenance", "RidgeMap", "Steering", "Where",
    "attach_rows", "attachments", "check_fits", "is_compiled", "load", "prompts_of", "record_last_token", "steer",
]  # fmt: skip
