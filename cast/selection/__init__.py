"""Which samples of a source task to read: strategies by name over embeddings of the examples."""

from cast.selection.embeddings import encoder_embeddings, state_embeddings
from cast.selection.strategies import select

__all__ = ["encoder_embeddings", "select", "state_embeddings"]
