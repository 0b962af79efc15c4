"""Parameters of the data: corpus, ingest, synthesis."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from stages.domain.core.records import Exact
from stages.domain.core.timeline import SampledFrames
from stages.domain.tasks import mix_vid_qa, task_of
from stages.domain.tasks.synthesis import TaskSettings
from stages.params.judging import WriterParams
from stages.params.types import Fraction01, Positive, Table
from stages.runtime.paths import MAPPING_SUFFIXES, MAPPINGS
from stages.runtime.sources.addresses import fault_of_address, fault_of_name, fault_of_source, is_remote, place_of
from stages.runtime.sources.roots import NameRules, Roots


class CorpusParams(Table):
    """The generated corpus: one coloured shape, two events in a row, ground truth for
    everything."""

    train_clips: int = Field(gt=0)
    validation_clips: int = Field(gt=0)
    test_clips: int = Field(gt=0)
    size_px: int = Field(ge=32, multiple_of=32)
    frames: int = Field(ge=16)
    rate: Exact
    #: Combinations of colour, shape and events that never occur in training; half of the test clips
    #: are drawn from them.
    held_out_combinations: int = Field(ge=0)
    #: Constant rate factor of x264: 0 is lossless, 51 is the lowest quality.
    crf: int = Field(ge=0, le=51)


class Tolerance(Table):
    """Largest error allowed in the times of an annotation: in seconds, and as a fraction of the
    clip's length. Both limits hold."""

    seconds: float = Field(ge=0)
    share: Fraction01


class ExcludedVideo(Table):
    """A video removed on request: ingest rejects it, and the same bytes under another name."""

    #: Path of the file as in the annotations, relative to the source folder.
    video: str = Field(min_length=1)
    #: SHA-256 of the file; null: it was never ingested, and missing when it was removed.
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None


class NamesParams(Table):
    """How names in the rows become paths of files below the folder of the videos."""

    #: Taken from the front of a name, as ``data/videos/`` of ``data/videos/a.mp4``; rows whose
    #: video begins otherwise find no file.
    strip: str
    #: Put there instead.
    add: str
    #: Put behind a name that leaves it out, such as ``.mp4``.
    extension: Annotated[str, StringConstraints(pattern=r"^(\.[A-Za-z0-9]+)?$")]

    @model_validator(mode="after")
    def _stays_below_the_folder(self) -> NamesParams:
        if self.add and (fault := fault_of_name(self.add)) is not None:
            raise ValueError(f"add: {fault}; write a folder below that of the videos, such as train/")
        return self


class Validation(Table):
    """How much of each file ingest decodes."""

    #: ``whole``: every frame. ``sampled``: at most four pictures, the first of the first and of the
    #: last group and two between; damage elsewhere is found when its frames are read. ``auto``:
    #: ``whole`` in a small source, else ``sampled``.
    mode: Literal["auto", "whole", "sampled"]
    #: With ``auto``: largest number of videos in a source whose files are decoded whole.
    whole_up_to: int = Field(ge=0)

    def is_whole(self, videos: int) -> bool:
        """True if every frame is decoded in a source of so many videos."""
        return self.mode == "whole" or (self.mode == "auto" and videos <= self.whole_up_to)


class IngestParams(Table):
    #: Videos and their annotations: a folder, absolute or relative to the project (``data/corpus``
    #: is the generated one), a folder or file of a bucket (``s3://``, ``gs://``), the annotation
    #: file on a web server (``https://``), or WebDataset tars in any of them. Keys come from the
    #: environment.
    source: str = Field(min_length=1)
    #: Folder of the videos, or address, where it is not the annotations' own; null: beside them.
    videos: str | None
    #: Rules for names in the rows that are not paths below that folder; null: they are.
    names: NamesParams | None
    #: Format of the annotations: one of code, a mapping that the package brings
    #: (:mod:`stages.lib.annotations.formats`), or the path of one of the project, below
    #: ``mappings/``.
    format: str
    #: File of the annotations in that folder, or wildcards for several; null: the usual file name
    #: of the format.
    annotations: str | None
    #: Fractions of the source videos that go to validation and test where the annotations name no
    #: split.
    validation_share: Fraction01
    test_share: Fraction01
    min_frames: int = Field(ge=2)
    max_duration_s: Positive
    #: A recording that is longer: ``reject`` it, or take it in ``parts``, consecutive, of equal
    #: length, none longer than that. A part has the events that lie in it; questions and captions
    #: of the whole recording are rejected. A row with ``start`` or ``end`` is never divided.
    longer: Literal["reject", "parts"]
    #: An event that exceeds its clip by more than this is rejected; one that exceeds it by less is
    #: cut at the edge of the clip.
    tolerance: Tolerance
    #: Time limit for examining one file; after that its process is ended and the file rejected.
    timeout_s: Positive
    validation: Validation
    #: Frames per second of videos that do not tell their own: frame folders and raw streams, of
    #: which no row states the ``rate``; null: set them aside.
    frame_rate: Annotated[Exact, Field(gt=0)] | None
    #: Re-encode files that decord must not read (open GOPs, other containers, rotation …): once
    #: here, instead of slow reading later. Interlaced frames are deinterlaced and HDR colours
    #: mapped to BT.709; false: such files are read as they are, and counted on the data card.
    normalise: bool
    #: Videos removed on request (written by ``vidbridge data remove``); ``vidbridge recipe use``
    #: keeps them.
    exclude: tuple[ExcludedVideo, ...]
    #: Regular expression with one group on the path of a video: the recording that a clip is of, if
    #: its annotation names no source; null: each file is a recording.
    source_pattern: str | None
    #: Look at every frame while a file is decoded: shot boundaries, and static, black and
    #: letterboxed clips. With ``validation.mode: auto``, files are then decoded whole.
    curate: bool
    #: Clips that show the same, encoded otherwise: ``report`` them, or ``drop`` all but one of each
    #: group, either of which needs ``curate``; null: do not look for them.
    near_duplicates: Literal["report", "drop"] | None

    @field_validator("source_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"source_pattern: {pattern!r} is not a regular expression ({error})") from error
        if groups != 1:
            raise ValueError(
                f"source_pattern: {pattern!r} has {groups} groups; put the recording's name, and nothing else, into"
                " parentheses, as in '^(.*)_[0-9]+[.]' ((?:…) groups without a name)"
            )
        return pattern

    @model_validator(mode="after")
    def _looks_at_what_it_compares(self) -> IngestParams:
        if self.near_duplicates is not None and not self.curate:
            raise ValueError(
                f"near_duplicates: {self.near_duplicates!r} compares what is seen while files are decoded; set curate:"
                " true, or near_duplicates: null"
            )
        return self

    @model_validator(mode="after")
    def _decodes_what_it_looks_at(self) -> IngestParams:
        if self.curate and self.validation.mode == "sampled":
            raise ValueError(
                "validation.mode: 'sampled' decodes a few pictures of a file, and curate looks at every frame; set"
                " validation.mode: auto or whole, or curate: false"
            )
        return self

    @property
    def roots(self) -> Roots:
        """Where rows and videos are."""
        rules = NameRules() if self.names is None else NameRules(**self.names.model_dump())
        return Roots(self.source, self.videos, rules)

    @property
    def is_plain_folder(self) -> bool:
        """True if the readers of annotations and of videos can work in the folder itself."""
        if is_remote(self.source) or self.videos is not None or self.names is not None:
            return False
        return place_of(self.source).file is None and not self.roots.local_shards

    def below(self, root: Path) -> IngestParams:
        """The same, with paths of this machine counted from ``root``."""
        roots = self.roots.below(root)
        mapping = str(root / self.format) if self.format.endswith(MAPPING_SUFFIXES) else self.format
        return self.model_copy(update={"source": roots.source, "videos": roots.videos, "format": mapping})

    @model_validator(mode="after")
    def _names_readable_addresses(self) -> IngestParams:
        if (fault := fault_of_source(self.source)) is not None:
            raise ValueError(f"source: {fault}")
        if self.videos is not None and (fault := fault_of_address(self.videos)) is not None:
            raise ValueError(f"videos: {fault}")
        return self

    @field_validator("format")
    @classmethod
    def _is_watched(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.suffix in MAPPING_SUFFIXES and (path.parts[0] != MAPPINGS or ".." in path.parts):
            raise ValueError(
                f"lies outside of {MAPPINGS}/, the folder that DVC watches; move it there and set"
                f" {MAPPINGS}/{path.name}"
            )
        return value

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> IngestParams:
        held_out = self.validation_share + self.test_share
        if held_out >= 1:
            raise ValueError(
                f"validation_share + test_share is {held_out:g}: it must stay below 1, or nothing is left to train on"
            )
        return self

    def decodes_whole(self, videos: int) -> bool:
        """True if every frame of a source of so many videos is decoded."""
        return self.curate or self.validation.is_whole(videos)


class SynthesizeParams(Table):
    #: Frames of a sample: a count (``8``), or a rate with bounds, as the Qwen models were trained
    #: (``{per_second: 2, at_least: 4, at_most: 64}``). Even numbers.
    sampled_frames: SampledFrames
    contact_sheet_samples: int = Field(ge=1, le=32)
    #: Largest fraction of dark events that may be guessed from text alone (class, other events);
    #: above it, synthesis fails.
    max_text_only: Fraction01
    #: null: templates generate questions and traces from the annotation.
    writer: WriterParams | None
    tasks: TaskSettings

    @model_validator(mode="after")
    def _writes_what_is_made(self) -> SynthesizeParams:
        if self.writer is None:
            return self
        if self.writer.questions and self.tasks.of(mix_vid_qa.TASK) is None:
            raise ValueError(
                f"writer.questions: {mix_vid_qa.NAME} is not synthesised, so there is none to write; add it to tasks,"
                " or set false"
            )
        for task in self.writer.traces.tasks if self.writer.traces else ():
            if task not in self.tasks.named:
                raise ValueError(
                    f"writer.traces.tasks: {task!r} is not synthesised (tasks: {', '.join(self.tasks.named)})"
                )
            if task_of(task).trace is None:
                raise ValueError(
                    f"writer.traces.tasks: {task!r} has no instruction for a writer (Task.trace); remove it"
                )
        return self
