"""Entry point of MLflow to serve this file's folder. It needs the package `vidbridge`, and reads
nothing outside."""

from pathlib import Path

from mlflow.models import set_model

from stages.tools.serving.server import VideoAnswers

set_model(VideoAnswers(Path(__file__).resolve().parent))
