"""``params.yaml`` as frozen types: everything that changes a result, and nothing else."""

from stages.params.data import CorpusParams, ExcludedVideo, IngestParams, SynthesizeParams, Tolerance, Validation
from stages.params.evaluation import GateParams, GaugeLimits, GaugeName
from stages.params.judging import (
    EventParams,
    HeldOutJudgeParams,
    JudgeParams,
    OpenAIJudgeParams,
    RuleJudgeParams,
    TraceParams,
    WriterParams,
)
from stages.params.models import Family, ModelParams, PretrainedModelParams, TinyModelParams
from stages.params.root import Params, load_params, parse_params
from stages.params.training import VISION_TARGET, GrpoRow, LoraParams, SftRow, TaskScaleParams, TrainingRow
from stages.params.types import ParamsError, Precision
from stages.params.watching import SampledParams, SftWatchParams, WatchParams

__all__ = [
    "VISION_TARGET",
    "CorpusParams",
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
    "LoraParams",
    "ModelParams",
    "OpenAIJudgeParams",
    "Params",
    "ParamsError",
    "Precision",
    "PretrainedModelParams",
    "RuleJudgeParams",
    "SampledParams",
    "SftRow",
    "SftWatchParams",
    "SynthesizeParams",
    "TaskScaleParams",
    "TinyModelParams",
    "Tolerance",
    "TraceParams",
    "TrainingRow",
    "Validation",
    "WatchParams",
    "WriterParams",
    "load_params",
    "parse_params",
]
