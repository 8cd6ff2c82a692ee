"""The report of `cast_analysis.py`: one section a part, each with a picture where one says more than a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from analysis_cells import cells, difference, mean, over
from variants_report import variants

from laai.files import write_atomically

Row = dict[str, Any]


def write_report(parts: dict[str, list[Row]], facts: Row, path: Path) -> str:
    """Write PATH.md, and PATH_PART.png for the parts that are drawn; returns the report."""
    about = ", ".join(f"{name} {value}" for name, value in facts.items())
    out = ["# What CAST vectors are made of", "", f"{about}.", ""]
    for name, kept in parts.items():
        # Rows of `samples` by "count" drew demonstrations from the whole pool: more labels than they tell of.
        rows = [row for row in kept if name != "samples" or "labels" in row]
        if not rows:
            continue
        out += [*SECTIONS[name](rows), ""]
        if name in PICTURES:
            picture = path.with_name(f"{path.stem}_{name}.png")
            _draw(PICTURES[name], rows, picture)
            out += [f"![{name}]({picture.name})", ""]
    text = "\n".join(out).rstrip() + "\n"
    write_atomically(path.with_suffix(".md"), lambda file: file.write_text(text))
    return text


def vectors(rows: list[Row]) -> list[str]:
    """Cosines between tasks, beside nulls, for a few depths."""
    row = rows[-1]
    by_layer, depth, tasks = _with_null(row), len(row["layers"]), len(row["names"])
    shown = sorted({round(i * (depth - 1) / 5) for i in range(6)})
    out = [f"## Difference vectors of {tasks} tasks ({', '.join(row['names'])}), seed {row['seed']}", ""]
    out += ["Mean cosine, by layer (site `heads`, full dimension):", ""]
    out += [
        f"| | {' | '.join(str(row['layers'][i]) for i in shown)} | mean |",
        "| --- |" + " ---: |" * (len(shown) + 1),
    ]
    names = {
        "same": "halves of one task's samples",
        "raw": "two tasks",
        "centred": "two tasks, less the mean over tasks",
        "forced": f"null: what taking off the mean over {tasks} tasks forces, −1/{tasks - 1}",
        "shuffled": "null: zero-shot states from other tasks",
        "signs": "null: signs of samples' differences at random",
        "random": "null: random directions (absolute cosine)",
    }
    for key, title in names.items():
        values = by_layer[key]
        out.append(f"| {title} | {' | '.join(f'{values[i]:.2f}' for i in shown)} | {np.mean(values):.2f} |")
    out += [
        "",
        "Halves are means over half the samples each, whose demonstrations overlap: neither a bound for other rows",
    ]
    out += ["nor how steady a whole vector is. All rows but the last are means of signed cosines: that of random"]
    out += ["directions is 0, and their absolute one tells how far single cosines stray from it."]
    out += ["", "All layers as one vector, raw (above the diagonal: less the mean over tasks):", ""]
    names_ = row["names"]
    out += [f"| | {' | '.join(names_)} |", "| --- |" + " ---: |" * len(names_)]
    for i, name in enumerate(names_):
        cells = [
            f"{row['matrix' if j < i else 'centred_matrix'][i][j]:.2f}" if i != j else "" for j in range(len(names_))
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def samples(rows: list[Row]) -> list[str]:
    """Exact match by number of source samples."""
    counts, whole = sorted({r["labels"] for r in rows}), cells(rows, "exact")
    out = ["## Exact match against the number of source samples", "", over(rows), ""]
    out += [
        "CAST and cross-task few-shot see as many source labels: samples are each other's demonstrations. The vector,"
    ]
    out += ["at `heads` on all layers or two thirds, has its place from the development examples besides.", ""]
    head = [f"| | {' | '.join(map(str, counts))} |", "| --- |" + " ---: |" * len(counts)]
    out += head
    for name, title in (("exact", "CAST"), ("prompted", "cross-task few-shot"), ("zero", "zero-shot")):
        out.append(f"| {title} | {' | '.join(mean(cells(rows, name, labels=n), whole) for n in counts)} |")
    pairs = (("zero", "CAST − zero-shot"), ("prompted", "CAST − cross-task few-shot"))
    for name, title in pairs:
        found = [difference(cells(rows, "exact", labels=n), cells(rows, name, labels=n)) for n in counts]
        out.append(f"| {title} | {' | '.join(found)} |")
    if len(counts) > 1:
        most, least = (cells(rows, "exact", labels=n) for n in (counts[-1], counts[0]))
        out += ["", f"CAST from {counts[-1]} samples − from {counts[0]}: {difference(most, least)}."]
    out += ["", "By pair, CAST / cross-task few-shot (mean over seeds):", "", *head]
    for source, target in dict.fromkeys((r["source"], r["target"]) for r in rows):
        kept = [[r for r in rows if (r["source"], r["target"], r["labels"]) == (source, target, n)] for n in counts]
        shown = [[f"{np.mean([r[name] for r in own]):.2f}" for name in ("exact", "prompted") if own] for own in kept]
        out.append(f"| {source} → {target} | {' | '.join(' / '.join(pair) or '-' for pair in shown)} |")
    return out


def strategies(rows: list[Row]) -> list[str]:
    """Exact match by strategy."""
    budgets, names = sorted({r["budget"] for r in rows}), list(dict.fromkeys(r["strategy"] for r in rows))
    out, whole = ["## Which source samples, at an equal budget", "", over(rows), ""], cells(rows, "exact")
    for budget in budgets:
        out += [f"{budget} samples, which are each other's demonstrations:", ""]
        out += [
            "| strategy | exact match | − random | probability of the answer, − random |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name in names:
            own, other = ({"budget": budget, "strategy": s} for s in (name, "random"))
            exact = cells(rows, "exact", **own)
            against = [
                "" if name == "random" else difference(cells(rows, m, **own), cells(rows, m, **other))
                for m in ("exact", "gain")
            ]
            out.append(f"| {name} | {mean(exact, whole)} | {' | '.join(against)} |")
        out += ["", f"By pair (mean over seeds), {' / '.join(names)}:", ""]
        for source, target in dict.fromkeys((r["source"], r["target"]) for r in rows):
            only = {"budget": budget, "source": source, "target": target}
            shown = [list(cells(rows, "exact", strategy=name, **only).values()) for name in names]
            numbers = (f"{np.mean(some):.2f}" if some else "-" for some in shown)
            out.append(f"- {source} → {target}: {' / '.join(numbers)}")
        out.append("")
    return out[:-1]


def wording(rows: list[Row]) -> list[str]:
    """How vector and gain hang on the instruction."""
    out = ["## Wording of the instruction", ""]
    for row in rows:
        wordings = [f"“{w.format('…')}”" if w else "none" for w in row["wordings"]]
        out += [f"{row['source']} → {row['target']}: exact match, target's wording by row, vector's by column:", ""]
        out += [f"| | zero-shot | {' | '.join(wordings)} |", "| --- |" + " ---: |" * (len(wordings) + 1)]
        for i, name in enumerate(wordings):
            out.append(f"| {name} | {row['zero'][i]:.2f} | {' | '.join(f'{v:.2f}' for v in row['exact'][i])} |")
        cosines = np.array(row["cosines"])
        off = cosines[~np.eye(len(cosines), dtype=bool)]
        out += ["", f"Cosines of its vectors between wordings: {off.min():.2f} to {off.max():.2f}.", ""]
    return out[:-1]


def profile(rows: list[Row]) -> list[str]:
    """The best place of each site."""
    out = ["## Layers and scales", "", "Probability of the answer on the development examples:", ""]
    out += ["| source → target | no vector | heads: best | residual: best |", "| --- | ---: | --- | --- |"]
    for row in rows:
        cells = []
        for site in ("heads", "residual"):
            table = np.array(row[site]["probability"])
            place, scale = np.unravel_index(table.argmax(), table.shape)
            first, last = row[site]["places"][place]
            where = f"layers {first}-{last}" if first != last else f"layer {first}"
            cells.append(f"{table.max():.3f} ({where} × {row[site]['scales'][scale]:g})")
        nothing = np.array(row["heads"]["probability"])[0, 0]
        out.append(f"| {row['source']} → {row['target']} | {nothing:.3f} | {' | '.join(cells)} |")
    return out


def cost(rows: list[Row]) -> list[str]:
    """Prompt tokens, cache, time."""
    out = [
        "## Cost of a query",
        "",
        f"{rows[-1]['task']}, one query at a time, whole prompt, medians; fp32 on the CPU:",
        "",
    ]
    out += ["| | prompt tokens | cache, kB | ms to the first token |", "| --- | ---: | ---: | ---: |"]
    for row in rows[-1]["rows"]:
        kilobytes = row["cache_bytes"] / 1000
        out.append(f"| {row['method']} | {row['prompt_tokens']} | {kilobytes:.0f} | {row['ms_to_first_token']:.0f} |")
    return out


def draw_vectors(rows: list[Row], figure: Any) -> None:
    """Cosines by layer, and the samples' differences in two dimensions."""
    left, right = figure.subplots(1, 2)
    row = rows[-1]
    by_layer = _with_null(row)
    titles = {"same": "halves of a task's samples", "raw": "two tasks", "centred": "two tasks, centred"}
    titles |= {
        "shuffled": "null: other tasks' zero-shot states",
        "signs": "null: random signs",
        "random": "null: random directions (absolute)",
        "forced": "null: forced by centring",
    }
    for number, (key, title) in enumerate(titles.items()):
        style = "--" if title.startswith("null") else "-"
        left.plot(row["layers"], by_layer[key], style, label=title, color=f"C{number}")
    left.set(xlabel="layer", ylabel="mean cosine", title="Difference vectors of tasks, by layer")
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    from matplotlib import colormaps

    colours = colormaps["tab20"](range(20))
    for number, (name, points) in enumerate(zip(row["names"], row["points"], strict=True)):
        right.scatter(*np.array(points).T, s=14, label=name, color=colours[number % 20])
    right.set(xlabel="first component", ylabel="second component", title="Each sample's difference, all layers")
    right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_samples(rows: list[Row], figure: Any) -> None:
    """Lines over the number of samples, over the pairs and seeds that all numbers have."""
    axis = figure.subplots()
    counts = sorted({r["labels"] for r in rows})
    for name, title in (("exact", "CAST"), ("prompted", "cross-task few-shot"), ("zero", "zero-shot")):
        found = [cells(rows, name, labels=n) for n in counts]
        if shared := set.intersection(*map(set, found)):
            means = [np.mean([one[key] for key in shared]) for one in found]
            axis.plot(counts, means, marker="o", ms=4, label=title)
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.set(xlabel="source samples", ylabel="mean exact match")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def draw_profile(rows: list[Row], figure: Any) -> None:
    """One row of panels a site: places by scales."""
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        for axis, site in zip(axes[:, column], ("heads", "residual"), strict=True):
            table = np.array(row[site]["probability"])
            image = axis.imshow(table.T, aspect="auto", cmap="viridis", vmin=0)
            figure.colorbar(image, ax=axis)
            places = [f"{a}-{b}" if a != b else str(a) for a, b in row[site]["places"]]
            step = max(1, len(places) // 10)
            axis.set_xticks(range(0, len(places), step), places[::step], fontsize=7, rotation=60)
            axis.set_yticks(range(len(row[site]["scales"])), [f"{s:g}" for s in row[site]["scales"]], fontsize=8)
            axis.set_title(f"{row['source']} → {row['target']}: {site}", fontsize=9)
            axis.set(xlabel="layers", ylabel="scale")


def _draw(draw: Callable[[list[Row], Any], None], rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(10, 4.2) if draw is not draw_profile else (10, 6), layout="constrained")
    draw(rows, figure)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _with_null(row: Row) -> dict[str, list[float]]:
    """Cosines by layer, with the mean that vectors which sum to zero have whatever they are, if alike in length."""
    found: dict[str, list[float]] = row["by_layer"]
    return found | {"forced": [-1 / (len(row["names"]) - 1)] * len(row["layers"])}


SECTIONS: dict[str, Callable[[list[Row]], list[str]]] = {
    "vectors": vectors,
    "strategies": strategies,
    "samples": samples,
    "variants": variants,
    "wording": wording,
    "profile": profile,
    "cost": cost,
}
PICTURES: dict[str, Callable[[list[Row], Any], None]] = {
    "vectors": draw_vectors,
    "samples": draw_samples,
    "profile": draw_profile,
}
