"""Results of an earlier run of a study, to go on from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def kept_results(parser: argparse.ArgumentParser, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What a JSON file holds, or nothing yet; ends the script if it was made with other settings than `facts`."""
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    if {name: found.get(name) for name in facts} != facts:
        parser.error(f"{path} holds results of other settings; move it away or name another --json")
    return found
