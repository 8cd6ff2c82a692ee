"""selection."""

from cast.selection.embeddings import encoder_embeddings, state_embeddings
from cast.selection.strategies import select

__all__ = ["encoder_embeddings", "select", "state_embeddings"]
