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
from stages.params.losses import CispoLoss, EntropyParams, MixedPolicy, SapoLoss
from stages.params.models import Family, ModelParams, PretrainedModelParams, TinyModelParams
from stages.params.root import Params, load_params, parse_params
from stages.params.sampling import LiveRatio, Oversampling
from stages.params.training import (
    VISION_TARGET,
    GrpoRow,
    LearningRates,
    LoraParams,
    SftRow,
    TaskScaleParams,
    TrainingRow,
)
from stages.params.types import ParamsError, Precision
from stages.params.watching import SampledParams, SftWatchParams, WatchParams

__all__ = [
    "VISION_TARGET",
    "CispoLoss",
    "CorpusParams",
    "EntailmentJudgeParams",
    "EntropyParams",
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
    "LearningRates",
    "LiveRatio",
    "LoraParams",
    "MixedPolicy",
    "ModelParams",
    "OneJudgeParams",
    "OpenAIJudgeParams",
    "Oversampling",
    "Params",
    "ParamsError",
    "PlacedJudge",
    "Precision",
    "PretrainedModelParams",
    "RuleJudgeParams",
    "SampledParams",
    "SapoLoss",
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
