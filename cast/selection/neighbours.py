"""Each sample's nearest neighbours by cosine similarity: the graph that selection works on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from laai.errors import UserError

Floats = NDArray[np.float32]
EXACT_UP_TO = 20_000
"""Samples up to which every pair is compared; beyond, an inverted file finds nearly all neighbours in far less time."""


class Neighbours(NamedTuple):
    """A directed graph from each of n samples to its k nearest others; n·k numbers, never n².

    Attributes:
        indices: (n, k) int32, nearest first.
        similarity: (n, k) float32 cosines.
    """

    indices: NDArray[np.int32]
    similarity: Floats

    def matrix(self, values: Floats) -> sp.csr_array:
        """(n, n) sparse matrix with `values` (n, k) on the edges."""
        count, k = self.indices.shape
        ends = np.arange(0, count * k + 1, k, dtype=np.int64)
        return sp.csr_array((values.ravel(), self.indices.ravel(), ends), shape=(count, count))

    def transitions(self) -> sp.csr_array:
        """(n, n) sparse: cosine over the sum of the sample's cosines, so that each row sums to one (IDEAL, 2310.10873).

        Negative cosines count as zero; a sample without a positive one spreads evenly.
        """
        weights = self.similarity.clip(min=0.0)
        weights[weights.sum(axis=1) <= 0] = 1.0
        return self.matrix(weights / weights.sum(axis=1, keepdims=True))


def unit_rows(embeddings: NDArray[np.floating]) -> Floats:
    """(n, width) in float32, each row of length one; rows of zeros stay.

    Raises:
        UserError: not a matrix, or a number in it that is not finite.
    """
    if embeddings.ndim != 2 or not embeddings.size:
        raise UserError(f"expected embeddings of shape (samples, width), found {embeddings.shape}")
    rows = np.array(embeddings, dtype=np.float32, order="C")
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    if not np.isfinite(norms).all():
        raise UserError(f"the embedding of sample {int(np.argmin(np.isfinite(norms)))} has a number that is not finite")
    rows /= np.where(norms > 0, norms, 1)
    return rows


def nearest_neighbours(rows: Floats, k: int, seed: int = 0) -> Neighbours:
    """The k nearest other samples of each, by cosine similarity (faiss).

    Args:
        rows: (n, width) of length one, see `unit_rows`.
        k: neighbours; n - 1 where there are fewer.
        seed: of the clustering behind the inverted file.
    """
    import faiss

    count, width = rows.shape
    k = min(k, count - 1)
    exact = faiss.IndexFlatIP(width)
    if count <= EXACT_UP_TO:
        exact.add(rows)
        return _without_self(*exact.search(rows, k + 1), np.arange(count))
    index = faiss.IndexIVFFlat(exact, width, int(2 * np.sqrt(count)), faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid, index.cp.spherical = seed, 5, 40, True
    index.train(rows)
    index.add(rows)
    index.nprobe = 8
    found = _without_self(*index.search(rows, k + 1), np.arange(count))
    short = np.flatnonzero((found.indices < 0).any(axis=1))  # those whose cells hold too few others
    if len(short):
        whole = faiss.IndexFlatIP(width)
        whole.add(rows)
        again = _without_self(*whole.search(rows[short], k + 1), short)
        found.indices[short], found.similarity[short] = again.indices, again.similarity
    return found


def _without_self(similarity: Floats, indices: NDArray[np.int64], own: NDArray[np.int64]) -> Neighbours:
    """Drop each sample from its own list; where equal samples pushed it out, the last."""
    others = indices != own[:, None]
    others[others.all(axis=1), -1] = False
    shape = (len(indices), indices.shape[1] - 1)
    return Neighbours(indices[others].reshape(shape).astype(np.int32), similarity[others].reshape(shape))
