"""The report of `cast_analysis.py`: one section a part, each with a picture where one says more than a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pair_cells import Found, cells, difference, mean, over, short

from laai.compare import Row, about, distinct, heat_map, only, picture, plot, table

Rows = Sequence[Row]
SITES = ("heads", "residual")
NO_PRIOR = ("ridge", "norm kept", "generated")
"""Variants that cannot have a label prior: like is compared with like."""


def report(parts: Mapping[str, Rows], facts: Row, path: Path) -> str:
    """The Markdown report of rows by part, whose pictures are named after `path`."""
    out = ["# What CAST vectors are made of", "", f"{about(facts)}.", ""]
    for part, rows in parts.items():
        out += [*SECTIONS[part](rows), ""]
        out += [f"![{part}]({file_of(part, path).name})", ""] if part in PICTURES else []
    return "\n".join(out).rstrip() + "\n"


def vectors(rows: Rows) -> list[str]:
    """Cosines between tasks, beside nulls, for a few depths."""
    row = rows[-1]
    by_layer, depth, tasks = with_null(row), len(row["layers"]), row["names"]
    some = sorted({round(i * (depth - 1) / 5) for i in range(6)})
    count = len(tasks)
    titles = {
        "same": "halves of one task's samples",
        "raw": "two tasks",
        "centred": "two tasks, less the mean over tasks",
        "forced": f"null: what taking off the mean over {count} tasks forces, −1/{count - 1}",
        "shuffled": "null: zero-shot states from other tasks",
        "signs": "null: signs of samples' differences at random",
        "random": "null: random directions (absolute cosine)",
    }
    by_depth = [
        [title, *(f"{by_layer[key][i]:.2f}" for i in some), f"{np.mean(by_layer[key]):.2f}"]
        for key, title in titles.items()
    ]
    numbers = range(count)
    matrix = [
        [tasks[i], *(f"{row['matrix' if j < i else 'centred_matrix'][i][j]:.2f}" if i != j else "" for j in numbers)]
        for i in numbers
    ]
    return [
        f"## Difference vectors of {count} tasks ({', '.join(tasks)}), seed {row['seed']}\n",
        "Mean cosine, by layer (site `heads`, full dimension):\n",
        *table(["", *(row["layers"][i] for i in some), "mean"], by_depth),
        "\nHalves are means over half the samples each, whose demonstrations overlap: neither a bound for other rows\n"
        "nor how steady a whole vector is. All rows but the last are means of signed cosines: that of random\n"
        "directions is 0, and their absolute one tells how far single cosines stray from it.\n",
        "All layers as one vector, raw (above the diagonal: less the mean over tasks):\n",
        *table(["", *tasks], matrix),
    ]


def samples(rows: Rows) -> list[str]:
    """Exact match by number of source samples."""
    counts, whole = sorted(distinct(rows, "labels")), cells(rows, "exact")
    by_count = {name: [cells(rows, name, labels=n) for n in counts] for name in ("exact", "prompted", "zero")}
    titles = {"exact": "CAST", "prompted": "cross-task few-shot", "zero": "zero-shot"}
    lines = [[title, *(mean(found, whole) for found in by_count[name])] for name, title in titles.items()]
    for name in ("zero", "prompted"):
        changes = [difference(a, b) for a, b in zip(by_count["exact"], by_count[name], strict=True)]
        lines.append([f"CAST − {titles[name]}", *changes])
    out = [
        *("## Exact match against the number of source samples", "", over(rows), ""),
        "CAST and cross-task few-shot see as many source labels: samples are each other's demonstrations. The vector,\n"
        "at `heads` on all layers or two thirds, has its place from the development examples besides.\n",
        *table(["", *counts], lines),
    ]
    if len(counts) > 1:
        change = difference(by_count["exact"][-1], by_count["exact"][0])
        out += ["", f"CAST from {counts[-1]} samples − from {counts[0]}: {change}."]
    lines = []
    for source, target in distinct(rows, "source", "target"):
        own = [only(rows, source=source, target=target, labels=n) for n in counts]
        pairs = [[f"{np.mean([r[name] for r in some]):.2f}" for name in ("exact", "prompted") if some] for some in own]
        lines.append([f"{source} → {target}", *(" / ".join(pair) or "-" for pair in pairs)])
    return [*out, "", "By pair, CAST / cross-task few-shot (mean over seeds):", "", *table(["", *counts], lines)]


def strategies(rows: Rows) -> list[str]:
    """Exact match by strategy."""
    names, whole = distinct(rows, "strategy"), cells(rows, "exact")
    out = ["## Which source samples, at an equal budget", "", over(rows)]
    for budget in sorted(distinct(rows, "budget")):
        some, lines = only(rows, budget=budget), []
        for name in names:
            changes = [difference(*(cells(some, m, strategy=s) for s in (name, "random"))) for m in ("exact", "gain")]
            exact = mean(cells(some, "exact", strategy=name), whole)
            lines.append([name, exact, *(["", ""] if name == "random" else changes)])
        head = ["strategy", "exact match", "− random", "probability of the answer, − random"]
        out += [f"\n{budget} samples, which are each other's demonstrations:\n", *table(head, lines)]
        out += [f"\nBy pair (mean over seeds), {' / '.join(names)}:\n"]
        for source, target in distinct(rows, "source", "target"):
            own = only(some, source=source, target=target)
            out.append(f"- {source} → {target}: {' / '.join(short(cells(own, 'exact', strategy=n)) for n in names)}")
    return out


def variants(rows: Rows) -> list[str]:
    """Exact match by kind of vector: what is added, and how, beside the plain difference."""
    names = distinct(rows, "variant")
    sources = sorted({s for r in rows for s in r.get("sources", [])}) or sorted(distinct(rows, "source"))
    told = {
        "mean of tasks": f"is the mean over the vectors of {', '.join(sources)} (less a pair's target)",
        "centred": "is the vector less the mean of tasks, and so less a share of itself",
        "ridge": "adds what a map makes of each query's own state, at the place of `difference`",
        "no label prior": "is at the place of `difference`",
        "generated": "steers the tokens of the answer too",
        "scale by layer": "goes on from the place of `difference` to a scale for each sixth of the depth",
    }
    notes = [f"`{name}` {note}" for name, note in told.items() if name in names]
    if bare := [f"`{name}`" for name in NO_PRIOR if name in names]:
        notes.append(f"without a label prior, and compared with a difference that has none either: {', '.join(bare)}")
    notes.append("forced choice is over targets with options.")
    known = [r for r in rows if r.get("choice") is not None]
    lines = []
    for name in names:
        lines.append([name])
        for some, measure, zero in ((rows, "exact", "zero"), (known, "choice", "zero_choice")):
            found, whole = cells(some, measure, variant=name), cells(some, measure)
            plain = "" if name == "difference" else difference(found, _alike(some, measure, name))
            lines[-1] += [mean(found, whole), plain, difference(found, cells(some, zero, variant=name))]
    head = ["vector", "exact match", "− difference", "− zero-shot", "forced choice", "− difference", "− zero-shot"]
    return ["## What is added, and how", "", over(rows), "", "; ".join(notes), "", *table(head, lines)]


def _alike(rows: Rows, measure: str, variant: str) -> Found:
    """Of the plain difference, for a variant that can have no label prior without one."""
    if variant not in NO_PRIOR:
        return cells(rows, measure, variant="difference")
    bare = [r for r in rows if not r["place"].get("label_prior")]
    return cells(bare, measure, variant="difference") | cells(rows, measure, variant="no label prior")


def wording(rows: Rows) -> list[str]:
    """How vector and gain hang on the instruction."""
    out = ["## Wording of the instruction"]
    for row in rows:
        names = [f"“{w.format('…')}”" if w else "none" for w in row["wordings"]]
        lines = [
            [name, *(f"{value:.2f}" for value in (zero, *own))]
            for name, zero, own in zip(names, row["zero"], row["exact"], strict=True)
        ]
        cosines = np.array(row["cosines"])
        off = cosines[~np.eye(len(cosines), dtype=bool)]
        out += [f"\n{row['source']} → {row['target']}: exact match, target's wording by row, vector's by column:\n"]
        out += table(["", "zero-shot", *names], lines)
        out += ["", f"Cosines of its vectors between wordings: {off.min():.2f} to {off.max():.2f}."]
    return out


def profile(rows: Rows) -> list[str]:
    """The best place of each site."""

    def best(row: Row, site: str) -> str:
        found = np.array(row[site]["probability"])
        place, scale = np.unravel_index(found.argmax(), found.shape)
        first, last = row[site]["places"][place]
        where = f"layers {first}-{last}" if first != last else f"layer {first}"
        return f"{found.max():.3f} ({where} × {row[site]['scales'][scale]:g})"

    lines = []
    for row in rows:
        nothing = row["heads"]["probability"][0][0]
        lines.append([f"{row['source']} → {row['target']}", f"{nothing:.3f}", *(best(row, site) for site in SITES)])
    head = ["source → target", "no vector", "heads: best", "residual: best"]
    told = "Probability of the answer on the development examples:"
    return ["## Layers and scales", "", told, "", *table(head, lines, align="lrll")]


def cost(rows: Rows) -> list[str]:
    """Prompt tokens, cache, time."""
    lines = [
        [r["method"], r["prompt_tokens"], f"{r['cache_bytes'] / 1000:.0f}", f"{r['ms_to_first_token']:.0f}"]
        for r in rows[-1]["rows"]
    ]
    told = f"{rows[-1]['task']}, one query at a time, whole prompt, medians; fp32 on the CPU:"
    head = ["", "prompt tokens", "cache, kB", "ms to the first token"]
    return ["## Cost of a query", "", told, "", *table(head, lines)]


def file_of(part: str, path: Path) -> Path:
    """Where the picture of a part is written."""
    return path.with_name(f"{path.stem}_{part}.png")


def draw(parts: Mapping[str, Rows], path: Path) -> None:
    """PATH_PART.png for the parts that are drawn."""
    for part in [part for part in PICTURES if part in parts]:
        PICTURES[part](parts[part], file_of(part, path))


def with_null(row: Row) -> dict[str, list[float]]:
    """Cosines by layer, with the mean that vectors which sum to zero have whatever they are, if alike in length."""
    found: dict[str, list[float]] = row["by_layer"]
    return found | {"forced": [-1 / (len(row["names"]) - 1)] * len(row["layers"])}


def draw_vectors(rows: Rows, path: Path) -> None:
    """Cosines by layer, and the samples' differences in two dimensions."""
    row, titles = rows[-1], {"same": "halves of a task's samples", "raw": "two tasks", "centred": "two tasks, centred"}
    titles |= {"shuffled": "null: other tasks' zero-shot states", "signs": "null: random signs"}
    titles |= {"random": "null: random directions (absolute)", "forced": "null: forced by centring"}
    by_layer = with_null(row)
    with picture(path, (10, 4.2), columns=2) as axes:
        from matplotlib import colormaps

        left, right = axes[0]
        lines = {title: (row["layers"], by_layer[key]) for key, title in titles.items()}
        styles = ["--" if title.startswith("null") else "-" for title in lines]
        plot(left, lines, styles, xlabel="layer", ylabel="mean cosine", title="Difference vectors of tasks, by layer")
        left.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        for number, (name, points) in enumerate(zip(row["names"], row["points"], strict=True)):
            right.scatter(*np.array(points).T, s=14, label=name, color=colormaps["tab20"](number % 20))
        right.set(xlabel="first component", ylabel="second component", title="Each sample's difference, all layers")
        right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_samples(rows: Rows, path: Path) -> None:
    """Lines over the number of samples, over the pairs and seeds that all numbers have."""
    counts, lines = sorted({r["labels"] for r in rows}), {}
    for name, title in (("exact", "cast"), ("prompted", "cross-task few-shot"), ("zero", "zero-shot")):
        found = [cells(rows, name, labels=n) for n in counts]
        if shared := set.intersection(*map(set, found)):
            lines[title] = counts, [float(np.mean([one[key] for key in shared])) for one in found]
    with picture(path, (6, 4.2)) as axes:
        axis = axes[0, 0]
        plot(axis, lines, xlabel="source samples", ylabel="mean exact match")
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)


def draw_profile(rows: Rows, path: Path) -> None:
    """One row of panels a site: places by scales."""
    with picture(path, (10, 6), len(SITES), len(rows)) as axes:
        for (i, site), (j, row) in [(site, row) for site in enumerate(SITES) for row in enumerate(rows)]:
            own, title = row[site], f"{row['source']} → {row['target']}: {site}"
            places = [f"{a}-{b}" if a != b else str(a) for a, b in own["places"]]
            scales = [f"{scale:g}" for scale in own["scales"]]
            image = heat_map(axes[i, j], np.array(own["probability"]).T, scales, places, title=title, vmin=0)
            axes[i, j].figure.colorbar(image, ax=axes[i, j])
            axes[i, j].set(xlabel="layers", ylabel="scale")


SECTIONS = {section.__name__: section for section in (vectors, strategies, samples, variants, wording, profile, cost)}
PICTURES = {"vectors": draw_vectors, "samples": draw_samples, "profile": draw_profile}
"""Parts where a picture says more than a table."""
