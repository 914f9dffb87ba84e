"""A finalist's card: what its weights are and how to use them, as JSON beside the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from harness.data.decode import DECODE
from harness.documents import file_sha256, parse_document, write_document
from harness.errors import StorageError
from harness.records import TrialRecord
from harness.specs import InputSpec

SCHEMA = "harness.card/1"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What must be known to use a finalist."""

    backbone: str
    plugin: str
    """Distribution that provides the backbone."""
    classes: tuple[str, ...]
    input: InputSpec
    """With the size it was trained at."""
    decode: str
    batch_size: int
    precision: str
    weights_sha256: str
    study: str
    dataset: str
    number: int
    seed: int
    freeze_depth: float
    scores: dict[str, dict[str, float]]
    """Accuracy and macro-F1 by split."""
    protocol: str
    licence: str
    """Of the pretrained weights it started from."""
    versions: dict[str, str]
    schema: str = SCHEMA


def write_card(folder: Path, record: TrialRecord, inputs: InputSpec) -> None:
    """Write the card of the weights in a final record's folder."""
    card = ModelCard(
        backbone=record.config.backbone,
        plugin=record.providers["backbone"].distribution,
        classes=record.dataset.classes,
        input=dataclasses.replace(inputs, size=record.config.image_size),
        decode=DECODE,
        batch_size=record.config.batch_size,
        precision=record.environment["precision"],
        weights_sha256=file_sha256(folder / WEIGHTS),
        study=record.study,
        dataset=record.dataset.name,
        number=record.number,
        seed=record.config.seed,
        freeze_depth=record.config.freeze_depth,
        scores={
            split: {"accuracy": scores.accuracy, "f1": scores.f1} for split, scores in record.scores.items()
        },
        protocol=record.protocol.digest,
        licence=record.weights.licence if record.weights else "none",
        versions=dict(record.environment),
    )
    write_document(folder / "card.json", dataclasses.asdict(card))


def read_card(folder: Path) -> ModelCard:
    """Read a finalist's card and check that it belongs to the weights beside it.

    Raises:
        StorageError: Card or weights are missing, damaged, or not of each other.
    """
    card = parse_document(ModelCard, folder / "card.json", SCHEMA, "a model's card")
    try:
        weights = file_sha256(folder / WEIGHTS)
    except OSError as error:
        raise StorageError(
            "a model's weights cannot be read", where=str(folder / WEIGHTS), why=str(error.strerror)
        ) from error
    if weights != card.weights_sha256:
        raise StorageError("weights and card are not of each other", where=str(folder / WEIGHTS))
    return card
