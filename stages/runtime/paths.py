"""Names of all files and folders that stages and flows exchange. Folders are relative to the
project's folder.

``dvc.yaml`` names the same outs, and a contract test compares them. A file that only one module
uses (a lock, a log) is named in that module.
"""

from __future__ import annotations

from pathlib import Path

# The project itself.

#: Written by people and by `vidbridge recipe use`: what determines results.
PARAMS_FILE = "params.yaml"
#: Written by people: the stages. A folder that holds it is a project.
PIPELINE_FILE = "dvc.yaml"
#: Written by DVC: the hashes of what each stage read and wrote when it last ran.
LOCK_FILE = "dvc.lock"
#: Suffix of a file or folder while it is written; it is renamed when it is complete. A leftover
#: comes from a killed process.
UNFINISHED = ".unfinished"

#: Written by `vidbridge init` and by plans, in a project without code of its own: ``<stage>.txt``,
#: digests of the installed package's code.
CODE = "code"

#: Written by people: mappings of their own annotations (YAML), for ``ingest.format``. DVC watches
#: the folder: an edit in it runs ingest again.
MAPPINGS = "mappings"
MAPPING_SUFFIXES = (".yaml", ".yml")
#: Written by people: tasks of their own (Python), for ``tasks.module``. DVC watches the folder: an
#: edit in it runs the stages again that make or score samples.
OWN_TASKS = "tasks"

# Outs of several stages.

#: Written by corpus, and by people for videos of their own: a row a video, in the format that
#: ``ingest.format`` names.
ANNOTATIONS_FILE = "annotations.jsonl"
#: Written by ingest and synthesize: Reject rows, reason after reason.
REJECTS_FILE = "rejects.jsonl"
#: Written by ingest, synthesize, base, difficulty and training: what the stage did, in counts.
SUMMARY_FILE = "summary.json"
#: Written by difficulty (Rolled rows: the replies to a sample and their scores) and by grpo
#: (RolloutGroup rows: some of its groups).
ROLLOUTS_FILE = "rollouts.jsonl"
#: Written by training, and copied by evaluate: a row a logged step, without times.
HISTORY_FILE = "history.jsonl"

#: Written by corpus: videos and their annotations.
CORPUS = Path("data/corpus")

#: Written by ingest: manifest, rejects, summary, card, and the videos that were encoded once more.
CLIPS = Path("data/clips")
#: Clip rows.
MANIFEST_FILE = "manifest.jsonl"
#: NearDuplicate rows, if ``ingest.near_duplicates`` asks for them.
NEAR_DUPLICATES_FILE = "near_duplicates.jsonl"
#: The data card: counts, licences, what was rejected; for people.
CARD_FILE = "card.md"
NORMALISED = "normalised"

#: Written by synthesize: a file a split and task (:func:`samples_file`), rejects, summary, contact
#: sheets.
SAMPLES = Path("data/samples")
#: Captioned rows: events that the writer's model told of clips without, if
#: ``synthesize.writer.events`` asks for them.
EVENTS_FILE = "events.jsonl"
#: ``<task>.png``: the frames of some samples, for people.
SHEETS = "sheets"

#: Written by difficulty, a folder a row: samples that are kept (``train`` only), rollouts, summary,
#: histogram.
DIFFICULTY = Path("data/difficulty")
#: Histogram of how often samples were solved; for people.
HISTOGRAM_FILE = "histogram.png"

#: Written by base, sft and grpo, a folder a row: a policy (:data:`FINAL`), checkpoints, history,
#: summary; of grpo rows also rollouts.
MODELS = Path("models")
#: Checkpoint rows.
CHECKPOINTS_FILE = "checkpoints.jsonl"
#: The policy after the last step, or the best watched one, as a Hugging Face folder.
FINAL = "final"
#: Written beside the weights of a registered version: the prompts that it was trained with.
USAGE_FILE = "vidbridge.json"
#: Key in the configuration beside a model's weights: rule for the positions of text after a video
#: in training.
POSITIONS = "positions_behind_video"
AFTER_LAST = "after_last"

#: Written by baselines and evaluate, a folder a policy: scores and predictions; of trained rows
#: also the history of training.
SCORES = Path("scores")
#: Written by baselines, evaluate and `vidbridge score`: means with their intervals, by task or by
#: part of a benchmark.
SCORES_FILE = "scores.json"
#: Written by `vidbridge score`: the same as a table; for people.
SCORES_TABLE_FILE = "scores.md"
#: Written by evaluate (Score rows) and `vidbridge evaluate` (a reply a question); with a view in
#: its name: :func:`predictions_file`.
PREDICTIONS_FILE = "predictions.jsonl"
#: Written by rescore and kept beside a registered version: SampleScore rows.
SAMPLE_SCORES_FILE = "samples.jsonl"

#: Written by summary: metrics, and a folder of CSV files for `dvc plots`.
REPORTS = Path("reports")
#: The scores of every policy and the gains between them.
METRICS_FILE = "metrics.json"
PLOTS = "plots"
#: A row a policy and task. Beside it lie ``sft.csv`` and ``grpo.csv``: a row a row of training and
#: logged step.
SCORES_CSV = "scores.csv"

# Local state of a machine: no outs.

#: All local state; git-ignored.
STATE = Path(".vidbridge")
#: MLflow's database where no other store is named.
DATABASE = STATE / "mlflow.db"
#: State from which interrupted training resumes, unless VIDBRIDGE_SCRATCH names a folder.
SCRATCH = STATE / "scratch"
#: Decoded frames, unless VIDBRIDGE_FRAME_CACHE names a folder.
FRAMES = STATE / "frames"
#: Fetched files of remote sources and of tars, unless VIDBRIDGE_SOURCE_CACHE names a folder.
SOURCES = STATE / "sources"
#: Answers of judges, unless VIDBRIDGE_JUDGE_CACHE names a folder.
JUDGE_ANSWERS = STATE / "judge"
#: Logs of engines that stages started to ask them, and what those need meanwhile.
ENGINES = STATE / "engines"
#: Models assembled for loading, and versions as MLflow serves them.
LOADED = STATE / "loaded"
SERVABLE = STATE / "servable"
#: Calls to MLflow that are sent later, because it did not answer.
UNSENT = STATE / "unsent"
#: Journals of ingest, so that an ingest that was killed goes on where it was.
EXAMINED = STATE / "examined"
#: The last whole lock file.
KEPT_LOCK = STATE / "dvc.lock.kept"
#: Written by `vidbridge ablate`: a clone a seed, and for each recipe a folder with the three files
#: below.
ABLATIONS = STATE / "ablation"
#: The grid; the same as a table and as a figure for people.
GRID_FILE, GRID_TABLE_FILE, GRID_FIGURE_FILE = "results.json", "table.md", "figure.svg"


def samples_file(folder: Path, split: str, task: str) -> Path:
    """The file of Sample rows of one split and task, below :data:`SAMPLES` or the folder of a
    difficulty row."""
    return folder / split / f"{task}.jsonl"


def predictions_file(folder: Path, view: str = "video") -> Path:
    """The predictions on one view of the videos (``video``, ``blank``, …), or of one trivial policy
    (``random``, ``constant``)."""
    return folder / (PREDICTIONS_FILE if view == "video" else f"predictions_{view}.jsonl")


def difficulty(row: str) -> Path:
    """The samples that a GRPO row trains on where it has a difficulty row: read as ``data/samples``
    is, split ``train`` only."""
    return DIFFICULTY / row


def model(row: str) -> Path:
    """The folder of a row: ``models/<row>`` with ``final/`` and ``checkpoint-<step>/`` as Hugging
    Face folders."""
    return MODELS / row


def final_model(row: str) -> Path:
    return MODELS / row / FINAL


def scores(row: str) -> Path:
    return SCORES / row
