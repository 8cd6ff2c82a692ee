"""How selection grows: seconds and peak memory to choose 100 of N samples, by strategy, each in a process of its own.

    python experiments/speed/selection.py                    1,000 to 100,000 samples: some minutes
    python experiments/speed/selection.py --n 20000 --strategies cast random --json rows.json

Embeddings are drawn from a mixture of Gaussians, 384 wide as those of small sentence encoders are. The seconds include
the graph of neighbours; the bytes are all that the process held, the embeddings and Python itself included.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, picture, timed

from cast.selection import select
from laai.files import write_json
from laai.models import peak_megabytes
from laai.vocabulary import STRATEGIES, Strategy

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
Row = dict[str, Any]


def main() -> None:
    """Measure each size and strategy, then print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=list(SIZES), help="samples in the pool")
    parser.add_argument("--samples", type=int, default=100, help="how many to choose (default: 100)")
    parser.add_argument("--width", type=int, default=384, help="of the embeddings (default: 384)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--json", type=Path, default=RESULTS / "bench_selection.json")
    parser.add_argument("--plot", type=Path, help="default: beside the JSON file")
    options = parser.parse_args()
    rows: list[Row] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as alone:
        for n, strategy in ((n, strategy) for n in options.n for strategy in options.strategies):
            row = alone.submit(measure, n, strategy, options.samples, options.width).result()
            rows.append(row)
            print(f"{n:>8,} {strategy:18s} {row['seconds']:7.2f} s {row['peak_bytes'] / 1e6:7.0f} MB", flush=True)
            write_json(options.json, {"samples": options.samples, "width": options.width, "rows": rows})
    if len(options.n) > 1:
        draw(rows, options.plot or options.json.with_suffix(".png"))


def measure(n: int, strategy: Strategy, samples: int, width: int, seed: int = 0) -> Row:
    """One row, in this process."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(n // 200, 5), width), dtype=np.float32)
    embeddings = centres[rng.integers(len(centres), size=n)]
    embeddings += rng.standard_normal((n, width), dtype=np.float32)
    seconds, chosen = timed(lambda: select(strategy, n, samples, lambda: embeddings, seed))
    assert len(set(chosen)) == min(samples, n)
    return {"n": n, "strategy": strategy, "seconds": seconds, "peak_bytes": 1e6 * peak_megabytes(torch.device("cpu"))}


def draw(rows: list[Row], path: Path) -> None:
    """Time and memory against the size of the pool."""
    with picture(path, (9, 3.8), columns=2) as (left, right):
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            own = [row for row in rows if row["strategy"] == strategy]
            sizes = [row["n"] for row in own]
            left.plot(sizes, [row["seconds"] for row in own], marker="o", label=strategy)
            right.plot(sizes, [row["peak_bytes"] / 1e9 for row in own], marker="o", label=strategy)
        left.set(xscale="log", yscale="log", xlabel="samples in the pool", ylabel="seconds to choose 100")
        right.set(xscale="log", xlabel="samples in the pool", ylabel="peak memory of the process, GB", ylim=(0, None))
        left.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
