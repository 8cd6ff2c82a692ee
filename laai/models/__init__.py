"""models."""

from laai.models.decoder import Decoder, Heads, find_decoder, text_config, unwrap
from laai.models.default import cache_folder, default_model_folder
from laai.models.identity import fingerprint
from laai.models.language_model import LanguageModel, model_identity, transformer
from laai.models.loading import load_model
from laai.models.memory import free_memory, peak_megabytes
from laai.models.sharding import load_sharded

__all__ = [
    "Decoder",
    "Heads",
    "LanguageModel",
    "cache_folder",
    "default_model_folder",
    "find_decoder",
    "fingerprint",
    "free_memory",
    "load_model",
    "load_sharded",
    "model_identity",
    "peak_megabytes",
    "text_config",
    "transformer",
    "unwrap",
]
