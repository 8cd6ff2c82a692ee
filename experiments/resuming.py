"""What the studies' command lines share: results of an earlier run to go on from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def kept_results(
    parser: argparse.ArgumentParser, path: Path, facts: dict[str, Any], report: bool = False
) -> dict[str, Any]:
    """What a JSON file holds, `facts` alone if it is not there yet.

    Ends the script if it was made with other settings than `facts`. For a `report`, which runs nothing, the settings
    are the file's own; without a file that ends the script too.
    """
    if not path.exists():
        if report:
            parser.error(f"{path} is not there: nothing to report; run without --report first")
        return facts
    found: dict[str, Any] = json.loads(path.read_text())
    if not report and {name: found.get(name) for name in facts} != facts:
        parser.error(f"{path} holds results of other settings; move it away or name another --json")
    return {name: found.get(name) for name in facts} | found
