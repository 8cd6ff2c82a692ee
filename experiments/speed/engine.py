"""What the frozen-prefix engine saves: one table, all rows of a kind measured in turn in one run.

    python experiments/speed/engine.py --quick            fewer and smaller rows, under 5 minutes on two cores
    python experiments/speed/engine.py                    all rows; a run that was stopped goes on row by row
    python experiments/speed/engine.py --only grid        one section
    python experiments/speed/engine.py --peers off        without the libraries that need an environment of their own

Sections: step-12, step-64, step-256, step-1024, growth, extraction-shared, extraction-drawn, grid, generation,
few-shot, and auto-TASK for 8 tasks. `ours` and `rival` are medians in `unit`; `ratio` is what the row's name says.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from inference import extraction_rows, few_shot_rows, generation_rows, grid_rows
from learning import AUTO_TASKS, ROUNDS, auto_means, auto_rows, growth_rows, step_rows
from measuring import RESULTS, Row, picture
from peers import Bench, PeerError, start_peers

import laai
from laai.files import write_json
from laai.models import default_model_folder


def sections(quick: bool) -> dict[str, Callable[[Bench], list[Row]]]:
    """What is measured, by name, in order."""
    made: dict[str, Callable[[Bench], list[Row]]] = {
        **{f"step-{tokens}": partial(step_rows, tokens=tokens) for tokens in ROUNDS},
        "growth": growth_rows,
        "extraction-shared": partial(extraction_rows, shared=True),
        "extraction-drawn": partial(extraction_rows, shared=False),
        "generation": generation_rows,
        "few-shot": few_shot_rows,
        "grid": grid_rows,
        **{f"auto-{task}": partial(auto_rows, task=task) for task in AUTO_TASKS},
    }
    long = {"step-1024", "growth", *(f"auto-{task}" for task in AUTO_TASKS[1:])}
    return {name: section for name, section in made.items() if not (quick and name in long)}


def main() -> None:
    """Measure what is missing, then print the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = "fewer examples, no other libraries, no 1024-token prompts"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--only", nargs="+", help="sections to measure")
    parser.add_argument("--again", action="store_true", help="measure sections that the file has already")
    parser.add_argument("--peers", default=None, help="folder of the other libraries' environment, or off")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="default: experiments/results/bench_engine[_quick].json")
    parser.add_argument("--plot", type=Path, help="default: beside the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    path = options.json or RESULTS / f"bench_engine{'_quick' if options.quick else ''}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    done: dict[str, list[Row]] = kept.get("sections", {})
    made = sections(options.quick)
    missing = [name for name in made if name in (options.only or [name]) and (options.again or name not in done)]
    facts = {"base_model": "default", "torch": torch.__version__, "threads": kept.get("threads", {})}
    ask = None
    if missing and not options.quick and options.peers != "off":
        try:
            ask = start_peers(default_model_folder(), options.threads, options.peers and Path(options.peers))
        except PeerError as error:
            print(f"left out: {error}", file=sys.stderr)
    if missing:
        bench = Bench(laai.load_model("default"), ask, options.quick)
    for name in missing:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        done[name] = made[name](bench)
        facts["threads"][name] = options.threads
        for row in done[name]:
            print(f"  {ratio_text(row):>8s}  {row['name']}", file=sys.stderr, flush=True)
        write_json(path, facts | {"rows": all_rows(done), "sections": done})
    print(table(all_rows(done)))
    draw(all_rows(done), options.plot or path.with_suffix(".png"))


def all_rows(done: dict[str, list[Row]]) -> list[Row]:
    """The rows of all sections, and those that follow from several."""
    rows = [row for section in done.values() for row in section]
    return rows + auto_means(rows)


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [f"| {r['name']} | {r['ours']:.3g} | {r['rival']:.3g} | {r['unit']} | {ratio_text(r)} |" for r in rows]
    return "\n".join(["| what | ours | rival | unit | ratio |", "| --- | ---: | ---: | --- | ---: |", *lines])


def ratio_text(row: Row) -> str:
    """The ratio in two digits."""
    return "-" if row["ratio"] is None else f"{row['ratio']:.2f}"


def draw(rows: list[Row], path: Path) -> None:
    """Seconds a step by prompt length, for each way that was measured."""
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        rival, _, rest = row["name"].partition(" step / engine step, ")
        if rest:
            tokens = int(rest.split()[0])
            curves.setdefault("this engine", {})[tokens] = row["ours"]
            curves.setdefault(rival, {})[tokens] = row["rival"]
    if not curves:
        return
    with picture(path, (6.4, 4)) as (axes,):
        colours = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b"]
        for colour, (name, curve) in zip(colours, curves.items(), strict=False):
            width = 2.5 if name == "this engine" else 1.5
            axes.plot(list(curve), list(curve.values()), marker="o", color=colour, label=name, lw=width)
        axes.set(xscale="log", yscale="log", xlabel="tokens in the prompt")
        axes.set_ylabel("seconds a training step (batch of 10)")
        axes.set_xticks(sorted(curves["this engine"]), [str(tokens) for tokens in sorted(curves["this engine"])])
        axes.minorticks_off()
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
