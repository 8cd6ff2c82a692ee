"""Do to runs what the world does to them, and write down what was lost: experiments/results/reliability.md.

    python experiments/reliability.py            about five minutes on two cores

Runs the fault tests of this repository, which are real: processes are killed, signalled, starved of disk space and
given damaged files. Each notes what it did and how often; this table is what they noted.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from laai.files import write_atomically

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/test_faults.py",
    "tests/test_distributed.py",
    "tests/test_fuzz.py",
    "tests/laai/runtime/test_checkpoint.py",
)


def main() -> None:
    """Run the tests and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "experiments" / "results" / "reliability.md")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", *TESTS, f"--junitxml={found}"], cwd=ROOT)
        text = table(faults(ElementTree.parse(found).getroot().iter("testcase")))
    write_atomically(output, lambda file: file.write_text(text))
    sys.stdout.write(text)
    sys.exit(done.returncode)


def faults(cases: Iterable[ElementTree.Element]) -> Counter[tuple[str, str]]:
    """(fault, outcome) -> how often it was tried: what tests that passed noted, and those that failed."""
    rows: Counter[tuple[str, str]] = Counter()
    for case in cases:
        values = [str(item.get("value")) for item in case.iter("property")]
        noted = list(zip(values[::3], map(int, values[1::3]), values[2::3], strict=True))
        if case.find("failure") is not None or case.find("error") is not None:
            noted = [(str(case.get("name")), 1, "**FAILED**")]
        for fault, tried, outcome in noted:
            rows[fault, outcome] += tried
    return rows


def table(rows: dict[tuple[str, str], int]) -> str:
    """The report."""
    about = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers"))
    head = f"Printed by `python experiments/reliability.py`: {about}, {platform.system()}, tiny random models."
    lines = ["# What runs survive", "", head, "", "| fault | tried | what came of it |", "| --- | ---: | --- |"]
    lines += [f"| {fault} | {tried} | {outcome} |" for (fault, outcome), tried in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
