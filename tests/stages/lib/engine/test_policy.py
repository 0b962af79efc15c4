"""Questions to a model outside of training, by an engine: the replies are those of this process.
The engine is a stand-in that speaks the real protocol and decodes as this project does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from stages.lib.engine.errors import EngineError, EngineLost, PromptMismatch
from stages.lib.engine.policy import opened_policy
from stages.lib.engine.process import LOST_VARIABLE, VARIABLE
from stages.lib.engine.wire import Question, Reply, Sampling, Video
from stages.lib.engine_server.app import Died
from stages.lib.inference.generate import Item, generate, rollouts
from stages.lib.inference.policy import Policy
from stages.lib.models.load import load_model, save_model
from tests.support.servers.engine.stand_in import HfEngine, Served, served
from tests.support.training.tiny import frames, tiny

# httpcore does not close a Unix socket that it could not connect.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

#: Two prompts about one video, and one about another.
ITEMS: list[Item] = [
    ("What colour is number 1?", frames(1)),
    ("What colour is number 3?", lambda: frames(2, 6, (64, 32))),
    ("Which?", frames(1)),
]
VIDEOS = [1, 2, 1]


class Noted(HfEngine):
    """Notes how many replies it is asked for at once; may end in the middle of a request."""

    def __init__(self, model: Path, dies_at: int | None = None) -> None:
        super().__init__(model)
        self.asked: list[int] = []
        self._dies_at = dies_at

    async def generate(
        self, question: Question, videos: Sequence[Video], seeds: Sequence[str | None], sampling: Sampling
    ) -> tuple[list[int], list[Reply]]:
        self.asked.append(len(seeds))
        if len(self.asked) == self._dies_at:
            raise Died("vLLM ended (out of memory)")
        return await super().generate(question, videos, seeds, sampling)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one shape."""
    home = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_model(*tiny("qwen2_5_vl", seed), home / str(seed))
    return [home / "0", home / "1"]


def asked(policy: Policy) -> tuple[list[str], list[list[str]]]:
    """Greedy and sampled replies to the items."""
    greedy = generate(policy, ITEMS, max_new_tokens=8, batch_size=2, videos=VIDEOS)
    sampled = rollouts(
        policy, ITEMS, ["a", "b", "c"], count=2, max_new_tokens=8, temperature=0.8, batch_size=2, videos=VIDEOS
    )
    return greedy, sampled


Open = Callable[..., AbstractContextManager[Policy]]


@pytest.fixture
def opened(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open the first model by an engine, or here."""

    @contextmanager
    def open_it(at: Served | None = None, *, lost: str = "wait", one_kind: bool = False) -> Iterator[Policy]:
        with monkeypatch.context() as patch:
            patch.setenv(VARIABLE, "hf" if at is None else at.address)
            patch.setenv(LOST_VARIABLE, lost)
            with opened_policy(
                folders[0],
                "fp32",
                stage="evaluate@x",
                scratch=tmp_path / "scratch",
                one_kind=one_kind,
            ) as policy:
                yield policy

    return open_it


def test_replies_are_those_of_this_process_whatever_the_engine_held(folders: list[Path], opened: Open) -> None:
    with opened() as here:
        expected = asked(here)
    engine = Noted(folders[1])  # another model's weights, until it is asked
    with served(engine) as at, opened(at) as policy:
        assert policy.max_tokens == here.max_tokens
        assert asked(policy) == expected
        assert engine.asked == [1, 1, 1, 2, 2, 2], "one request a prompt, whatever the number of its replies"
    with served(Noted(folders[1])) as at, at.client() as client:
        assert client.health().weights == "", "nobody asked this one"


def test_a_model_without_a_folder_is_written_for_the_engine(folders: list[Path], tmp_path: Path, opened: Open) -> None:
    with opened() as here:
        expected = asked(here)
    with (
        served(Noted(folders[1])) as at,
        opened_policy(
            None,
            "fp32",
            stage="evaluate",
            load=partial(load_model, folders[0], "fp32"),
            scratch=tmp_path / "scratch",
            chosen=at.address,
        ) as policy,
    ):
        assert asked(policy) == expected


def test_a_lost_engine_is_made_up_for_or_an_error_as_was_said(
    folders: list[Path], opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened() as here:
        expected = asked(here)
    with served(Noted(folders[1], dies_at=2)) as at, opened(at, lost="hf") as policy:
        assert asked(policy) == expected
    assert capsys.readouterr().err.count("replies are decoded here from now on, as the engine is gone") == 1
    for how in ({"lost": "fail"}, {"lost": "hf", "one_kind": True}):
        with (
            served(Noted(folders[1], dies_at=2)) as at,
            opened(at, **how) as policy,
            pytest.raises(EngineLost, match="out of memory"),
        ):
            asked(policy)


def test_an_engine_of_another_model_is_an_error(folders: list[Path], tmp_path: Path, opened: Open) -> None:
    model, processor = tiny("qwen2_5_vl")
    processor.video_processor.size = {"shortest_edge": 256, "longest_edge": 256}  # it shows less of a frame
    save_model(model, processor, tmp_path / "other")

    class Stubborn(HfEngine):
        async def load_weights(self, folder: Path) -> None:
            """Keep what was there, as an engine with a processor of its own."""

    with (
        served(Stubborn(tmp_path / "other")) as at,
        opened(at) as policy,
        pytest.raises(PromptMismatch, match="tokens of prompt 0"),
    ):
        asked(policy)


def test_an_engine_that_fails_is_an_error_of_its_own(folders: list[Path], opened: Open) -> None:
    class Failing(HfEngine):
        async def generate(self, *_: object) -> tuple[list[int], list[Reply]]:
            raise RuntimeError("a kernel failed")

    with (
        served(Failing(folders[0])) as at,
        opened(at) as policy,
        pytest.raises(EngineError, match=r"failed to answer /generate: HTTP 500; look at its log"),
    ):
        asked(policy)
