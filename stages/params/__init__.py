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
from stages.params.sampling import LiveRatio, Oversampling
from stages.params.training import VISION_TARGET, GrpoRow, LoraParams, SftRow, TaskScaleParams, TrainingRow
from stages.params.types import ParamsError, Precision

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
    "LiveRatio",
    "LoraParams",
    "ModelParams",
    "OpenAIJudgeParams",
    "Oversampling",
    "Params",
    "ParamsError",
    "Precision",
    "PretrainedModelParams",
    "RuleJudgeParams",
    "SftRow",
    "SynthesizeParams",
    "TaskScaleParams",
    "TinyModelParams",
    "Tolerance",
    "TraceParams",
    "TrainingRow",
    "Validation",
    "WriterParams",
    "load_params",
    "parse_params",
]
