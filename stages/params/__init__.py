"""``params.yaml`` as frozen types: everything that changes a result, and nothing else."""

from stages.params.data import CorpusParams, ExcludedVideo, IngestParams, SynthesizeParams, Tolerance, Validation
from stages.params.evaluation import GateParams, GaugeLimits, GaugeName
from stages.params.judging import (
    EntailmentJudgeParams,
    EventParams,
    HeldOutJudgeParams,
    JudgeParams,
    JudgesByTaskParams,
    KindOfJudge,
    OneJudgeParams,
    OpenAIJudgeParams,
    PlacedJudge,
    RuleJudgeParams,
    SimilarityJudgeParams,
    TraceParams,
    WriterParams,
    judge_for,
    placed_judges,
)
from stages.params.models import Family, ModelParams, PretrainedModelParams, TinyModelParams
from stages.params.root import Params, load_params, parse_params
from stages.params.training import VISION_TARGET, GrpoRow, LoraParams, SftRow, TaskScaleParams, TrainingRow
from stages.params.types import ParamsError, Precision
from stages.params.watching import SampledParams, SftWatchParams, WatchParams

__all__ = [
    "VISION_TARGET",
    "CorpusParams",
    "EntailmentJudgeParams",
    "EventParams",
    "ExcludedVideo",
    "Family",
    "GateParams",
    "GaugeLimits",
    "GaugeName",
    "GrpoRow",
    "HeldOutJudgeParams",
    "IngestParams",
    "JudgeParams",
    "JudgesByTaskParams",
    "KindOfJudge",
    "LoraParams",
    "ModelParams",
    "OneJudgeParams",
    "OpenAIJudgeParams",
    "Params",
    "ParamsError",
    "PlacedJudge",
    "Precision",
    "PretrainedModelParams",
    "RuleJudgeParams",
    "SampledParams",
    "SftRow",
    "SftWatchParams",
    "SimilarityJudgeParams",
    "SynthesizeParams",
    "TaskScaleParams",
    "TinyModelParams",
    "Tolerance",
    "TraceParams",
    "TrainingRow",
    "Validation",
    "WatchParams",
    "WriterParams",
    "judge_for",
    "load_params",
    "parse_params",
    "placed_judges",
]
