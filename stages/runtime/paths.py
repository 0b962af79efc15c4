"""Where things lie, relative to the project's folder: one home for every path that a stage writes.

``dvc.yaml`` names the same paths; a contract test compares the two.
"""

from __future__ import annotations

from pathlib import Path

#: In a project without code of its own: a file a stage, with the digest of the installed package's code (``vidbridge init``).
CODE = "code"
CORPUS = Path("data/corpus")
#: Written by ingest: ``manifest.jsonl`` (Clip), ``rejects.jsonl`` (Reject), ``summary.json``, ``card.md``, and what was encoded anew.
CLIPS = Path("data/clips")
NORMALISED = "normalised"
CARD_FILE = "card.md"
#: Written by synthesize: ``<split>/<task>.jsonl`` (Sample), ``rejects.jsonl``, ``summary.json``, ``sheets/<task>.png``.
SAMPLES = Path("data/samples")
#: Written by difficulty, a folder a row: ``train/<task>.jsonl`` (Sample), ``rollouts.jsonl`` (Rolled), ``summary.json``, ``histogram.png``.
DIFFICULTY = Path("data/difficulty")
ROLLOUTS_FILE = "rollouts.jsonl"
HISTOGRAM_FILE = "histogram.png"
MODELS = Path("models")
SCORES = Path("scores")
REPORTS = Path("reports")

#: Inside ``models/<row>``: Checkpoint rows, training history (no times), and what the run did. GRPO rows have ``rollouts.jsonl``
#: (RolloutGroup) as well.
CHECKPOINTS_FILE = "checkpoints.jsonl"
HISTORY_FILE = "history.jsonl"
SUMMARY_FILE = "summary.json"
FINAL = "final"
#: Beside the weights of a version: how it was trained to be asked.
USAGE_FILE = "vidbridge.json"
#: In the configuration beside a model's weights: by which rule the text behind a video was placed when they were trained.
POSITIONS = "positions_behind_video"
AFTER_LAST = "after_last"
#: Name of the annotation file inside a source folder.
ANNOTATIONS_FILE = "annotations.jsonl"


def difficulty(row: str) -> Path:
    """The samples that a GRPO row trains on where it has a difficulty row: read as ``data/samples`` is, split ``train`` only."""
    return DIFFICULTY / row


def model(row: str) -> Path:
    """The folder of a row: ``models/<row>`` with ``final/`` and ``checkpoint-<step>/`` as Hugging Face folders."""
    return MODELS / row


def final_model(row: str) -> Path:
    return MODELS / row / FINAL


def scores(row: str) -> Path:
    return SCORES / row
