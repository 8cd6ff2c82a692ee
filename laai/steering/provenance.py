"""What vectors were made from: the prompt style, and digests of the inputs they have seen, which no test may use.

Digests are kept instead of inputs: a few bytes each, and no private text travels with the vectors.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laai.errors import UserError
from laai.tasks import Example, Task, same_text

DIGEST_BYTES = 4
"""Of each input: among 300 that were seen, one in 14 million others is taken for one of them, and not tested."""


def seen_digests(inputs: Iterable[str], *before: str | None) -> str:
    """Digests of inputs as one base64 text, with those of earlier such texts, sorted and without repetition."""
    found = {_digest(text) for text in inputs}.union(*map(_digests, before))
    return base64.b64encode(b"".join(sorted(found))).decode()


def unseen(examples: Sequence[Example], metadata: Mapping[str, Any]) -> tuple[Example, ...]:
    """The examples whose input is not, but for case and spaces, among those that vectors with this metadata saw."""
    seen = _digests(metadata.get("seen"))
    # The digest of the text as it stands is that of files of before.
    return tuple(e for e in examples if not {_digest(e.input), _digest(e.input, same=False)} & seen)


def style_of(metadata: Mapping[str, Any]) -> Any:
    """The prompt style that vectors were learned, or else extracted, with; None where nothing says."""
    made = [metadata, *(metadata.get(name) or {} for name in ("training", "cast"))]
    return next((how["style"] for how in made if "style" in how), None)


def other_instruction(metadata: Mapping[str, Any], task: Task) -> str | None:
    """The instruction that vectors of this task were made under, where it is not the task's; None where it is."""
    made = [(metadata.get(how) or {}, name) for how, name in (("training", "task"), ("cast", "source"))]
    of_task = [facts for facts, name in made if facts.get(name) == task.name and "instruction" in facts]
    found = str(of_task[0]["instruction"]) if of_task else task.instruction
    return None if found == task.instruction else found


def shared_facts(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the sum of two vectors: the model, the prompt style, and what either has seen.

    Raises:
        UserError: the base models' configurations or the prompt styles differ.
    """
    for name, what in (("config_hash", "base models: their configurations hash to"), ("style", "prompt styles:")):
        x, y = (style_of(m) if name == "style" else m.get(name) for m in (a, b))
        if x and y and x != y:
            raise UserError(f"cannot add vectors of different {what} {x} and {y}")
    facts = {key: a[key] for key in ("base_model", "revision", "config_hash") if key in a}
    facts |= {"style": style} if (style := style_of(a) or style_of(b)) else {}
    return facts | ({"seen": seen} if (seen := seen_digests((), a.get("seen"), b.get("seen"))) else {})


def _digest(text: str, same: bool = True) -> bytes:
    text = same_text(text) if same else text
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:DIGEST_BYTES]


def _digests(text: str | None) -> set[bytes]:
    whole = base64.b64decode(text or "")
    return {whole[i : i + DIGEST_BYTES] for i in range(0, len(whole), DIGEST_BYTES)}
