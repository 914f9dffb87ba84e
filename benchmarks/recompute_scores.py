"""Recompute every score of a study with scikit-learn from the saved predictions.

Prints the largest difference.

usage: recompute_scores.py runs/STUDY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from harness import read_records


def main() -> None:
    folder = Path(sys.argv[1])
    worst = 0.0
    compared = 0
    for record in read_records(folder):
        if not record.scores:
            continue
        stored = safetensors.numpy.load_file(folder / record.folder / "predictions.safetensors")
        for split, scores in record.scores.items():
            labels = stored[f"{split}.labels"]
            chosen = stored[f"{split}.probabilities"].argmax(axis=1)
            present = np.unique(labels)
            precision, recall, f1, _ = precision_recall_fscore_support(
                labels, chosen, labels=present, average="macro", zero_division=0
            )
            each = precision_recall_fscore_support(
                labels, chosen, labels=range(len(record.dataset.classes)), average=None, zero_division=0
            )
            pairs = [
                (scores.accuracy, accuracy_score(labels, chosen)),
                (scores.precision, precision),
                (scores.recall, recall),
                (scores.f1, f1),
                *zip(scores.per_class.precision, each[0], strict=True),
                *zip(scores.per_class.recall, each[1], strict=True),
                *zip(scores.per_class.f1, each[2], strict=True),
            ]
            worst = max(worst, *(abs(ours - theirs) for ours, theirs in pairs))
            compared += len(pairs)
            matrix = confusion_matrix(labels, chosen, labels=range(len(record.dataset.classes)))
            assert np.array_equal(matrix, np.array(scores.confusion)), record.folder
    print(f"{folder.name}: {compared} scores recomputed, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
