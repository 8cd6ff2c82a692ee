"""The frozen language model: how it is loaded, where it lies, which it is, and where its layers and heads are.

`LanguageModel` knows all that others have to ask of a transformers model, so that no room above looks into one:
steering hooks into its decoder, the engine runs it, learning keeps it where it is. Below, it asks for files,
errors and the vocabulary alone.
"""

from laai.models.decoder import Decoder, find_decoder, unwrap
from laai.models.default import cache_folder, default_model_folder
from laai.models.identity import fingerprint
from laai.models.language_model import LanguageModel, decoder_of, model_identity, transformer
from laai.models.loading import load_model
from laai.models.memory import free_memory, peak_megabytes
from laai.models.sharding import load_sharded

__all__ = [
    "Decoder", "LanguageModel", "cache_folder", "decoder_of", "default_model_folder", "find_decoder", "fingerprint",
    "free_memory", "load_model", "load_sharded", "model_identity", "peak_megabytes", "transformer", "unwrap",
]  # fmt: skip
