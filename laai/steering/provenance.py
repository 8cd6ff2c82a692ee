"""What vectors were made from and for: the model, how they were extracted or learned, and inputs no test may use.

Digests are kept instead of inputs: a few bytes each, and no private text travels with the vectors.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from laai.errors import UserError
from laai.tasks import Example, Task, same_text

DIGEST_BYTES = 4
"""Of each input: among 300 that were seen, one in 14 million others is taken for one of them, and not tested."""

LONGEST = 200
"""Characters of `made_of`, at most."""


@dataclass(frozen=True)
class Provenance:
    """Facts that travel with vectors and in their file, as JSON values; None where nothing is known.

    Parts and multiples of vectors keep all of them but the scores, which were not measured on the part; sums keep the
    model, the prompt style and what was seen. `made_of` says what both came from.

    Attributes:
        base_model: the model that they were made for: `default`, a hub id, a folder or a file.
        revision: its commit on the hub, or the sha256 of a GGUF file.
        config_hash: stands for its architecture; vectors are refused by models of another.
        style: prompt style of a sum's parts, which says nothing of their making any more; see `prompt_style`.
        start: `cast` of the vectors that learning began with.
        cast: how they were extracted: source, style, kind, samples, shots, labels, instruction, seed and so on; or the
            `combined` parts of a mean, each with its weight; and what a vector was `centred_on`.
        seen: digests of the inputs that they were made from, as base64 text; see `unseen`.
        training: how they were learned: task, examples, seed, settings; of a part or multiple, how its origin was.
        label_prior: label -> nats by which the vectors shift its first token.
        refused: they were not expected to help.
        metrics: their scores on test queries.
        made_of: what a sum, multiple or part was made of, such as `0.5 * (antonym, laai)`; of `LONGEST` characters.
        notes: entries of the file's header that this version does not know.
    """

    base_model: str | None = None
    revision: str | None = None
    config_hash: str | None = None
    style: str | None = None
    start: Mapping[str, Any] | None = None
    cast: Mapping[str, Any] | None = None
    seen: str | None = None
    training: Mapping[str, Any] | None = None
    label_prior: Mapping[str, float] | None = None
    refused: bool | None = None
    metrics: Mapping[str, Any] | None = None
    made_of: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Provenance:
        """Read what `to_header` wrote; entries of other names become `notes`.

        Raises:
            TypeError: an entry that is named as a field of text or facts holds something else.
        """
        known = {one.name: str(one.type) for one in fields(cls) if one.name != "notes"}
        for name, kind in known.items():
            expected = str if kind.startswith("str") else Mapping if kind.startswith("Mapping") else bool
            if not isinstance(value := header.get(name), expected | None):
                raise TypeError(f"{name} is {type(value).__name__}")
        notes = {name: value for name, value in header.items() if name not in known}
        return cls(**{name: value for name, value in header.items() if name in known}, notes=notes)

    def to_header(self) -> dict[str, Any]:
        """Plain JSON values by name, without those that are not known, but for the revision of a known model."""
        facts = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "notes"}
        kept = {"revision"} if self.base_model is not None else set()
        return {name: value for name, value in facts.items() if value is not None or name in kept} | dict(self.notes)

    @property
    def prompt_style(self) -> str | None:
        """The prompt style that they were learned, or else extracted, with."""
        made = ({"style": self.style} if self.style else {}, self.training or {}, self.cast or {})
        return next((how["style"] for how in made if "style" in how), None)

    @property
    def label(self) -> str:
        """A short name, in brackets: task and method, or what it is made of."""
        if self.made_of:
            return f"({self.made_of})"
        if self.training:
            return f"({self.training.get('task')}, laai)"
        if self.cast:
            return f"({', '.join(str(part.get('source')) for part in self.cast.get('combined', [self.cast]))}, cast)"
        return "(label prior)" if self.label_prior else "(given)"

    def derived(self, made_of: str) -> Provenance:
        """Of a part or a multiple: without the scores."""
        return replace(self, metrics=None, made_of=_short(made_of))

    def summed(self, other: Provenance, sign: str) -> Provenance:
        """Of a sum or difference: the model, the prompt style, and what either has seen.

        Raises:
            UserError: the base models' configurations or the prompt styles differ.
        """
        hashes, styles = ((self.config_hash, other.config_hash), (self.prompt_style, other.prompt_style))
        for (a, b), what in ((hashes, "base models: their configurations hash to"), (styles, "prompt styles:")):
            if a and b and a != b:
                raise UserError(f"cannot add vectors of different {what} {a} and {b}")
        made_of = _short(f"{self.label} {sign} {other.label}")
        whole = replace(self.model(), style=styles[0] or styles[1], made_of=made_of)
        return whole.having_seen((), self.seen, other.seen)

    def model(self) -> Provenance:
        """What it says of the model alone."""
        return Provenance(self.base_model, self.revision, self.config_hash)

    def having_seen(self, inputs: Iterable[str], *before: str | None) -> Provenance:
        """The same with the digests of inputs, and of earlier digests, among what was seen."""
        found = {_digest(text) for text in inputs}.union(_digests(self.seen), *map(_digests, before))
        return replace(self, seen=base64.b64encode(b"".join(sorted(found))).decode() or None)

    def unseen(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """The examples whose input is not, but for case and spaces, among those that were seen."""
        seen = _digests(self.seen)
        # The digest of the text as it stands is that of files of before.
        return tuple(e for e in examples if not {_digest(e.input), _digest(e.input, same=False)} & seen)

    def other_instruction(self, task: Task) -> str | None:
        """The instruction that vectors of this task were made under, where it is not the task's; None where it is."""
        made = ((self.training or {}, "task"), (self.cast or {}, "source"))
        of_task = [facts for facts, name in made if facts.get(name) == task.name and "instruction" in facts]
        found = str(of_task[0]["instruction"]) if of_task else task.instruction
        return None if found == task.instruction else found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 2]} … {text[-(LONGEST // 2 - 1) :]}"


def _digest(text: str, same: bool = True) -> bytes:
    text = same_text(text) if same else text
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:DIGEST_BYTES]


def _digests(text: str | None) -> set[bytes]:
    whole = base64.b64decode(text or "")
    return {whole[i : i + DIGEST_BYTES] for i in range(0, len(whole), DIGEST_BYTES)}
