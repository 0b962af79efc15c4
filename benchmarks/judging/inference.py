"""A small model of natural language inference, trained here on pairs from a grammar: what the
entailment judge is tried on where no public model can be fetched.

It knows synonyms, the passive voice, places that are left out, swapped roles, denials and lists of
guesses, as far as the grammar makes them. Its sentences share no reference with the judges'
benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from stages.lib.judging.entailment import LABELS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Nouns of one meaning, a line each; the first of a line is the one that references use.
NOUNS = (
    ("man", "guy", "gentleman"), ("woman", "lady"), ("boy", "lad"), ("girl", "young lady"), ("child", "kid"),
    ("baby", "infant", "toddler"), ("dog", "puppy", "hound"), ("cat", "kitten"), ("horse", "pony"), ("goat", "animal"),
    ("teacher", "instructor"), ("player", "athlete"), ("nurse", "caretaker"), ("chef", "cook"), ("singer", "vocalist"),
)  # fmt: skip
#: Verbs of one meaning, a line each, as third person, participle and past participle.
VERBS = (
    (("carries", "carrying", "carried"), ("transports", "transporting", "transported")),
    (("greets", "greeting", "greeted"), ("welcomes", "welcoming", "welcomed")),
    (("hits", "hitting", "hit"), ("strikes", "striking", "struck")),
    (("helps", "helping", "helped"), ("assists", "assisting", "assisted")),
    (("lifts", "lifting", "lifted"), ("raises", "raising", "raised")),
    (("chases", "chasing", "chased"), ("pursues", "pursuing", "pursued")),
    (("washes", "washing", "washed"), ("cleans", "cleaning", "cleaned")),
    (("teaches", "teaching", "taught"), ("instructs", "instructing", "instructed")),
    (("looks at", "looking at", "looked at"), ("stares at", "staring at", "stared at")),
    (("frightens", "frightening", "frightened"), ("scares", "scaring", "scared")),
    (("hides", "hiding", "hidden"), ("conceals", "concealing", "concealed")),
    (("praises", "praising", "praised"), ("compliments", "complimenting", "complimented")),
    (("leaves", "leaving", "left"), ("abandons", "abandoning", "abandoned")),
    (("calls", "calling", "called"), ("phones", "phoning", "phoned")),
)  # fmt: skip
COLOURS = ("white", "red", "green", "black", "a blue coat", "a striped shirt", "a hat")
PLACES = ("in the garden", "on the street", "near the lake", "in the kitchen", "at the beach", "beside the car")


class Example(NamedTuple):
    premise: str
    hypothesis: str
    label: str


def examples(count: int, seed: int) -> list[Example]:
    """Draw labelled pairs from the grammar."""
    rng = Random(f"inference/{seed}")
    return [_example(rng) for _ in range(count)]


def _example(rng: Random) -> Example:
    # A noun stands with what the person wears, which each further text keeps or leaves out.
    agent, patient = (
        [f"{noun}{worn}" for noun in nouns] for nouns, worn in zip(rng.sample(NOUNS, 2), _worn(rng), strict=True)
    )
    verb, other = rng.sample(VERBS, 2)
    place = f" {rng.choice(PLACES)}" if rng.random() < 0.4 else ""
    said = f"{_the(rng)} {agent[0]} {verb[0][0]} {_the(rng)} {patient[0]}{place}"
    if rng.random() < 0.5:
        agent = [noun.partition(" in ")[0] for noun in agent]
    alike = f"{_the(rng)} {rng.choice(agent)} {rng.choice(verb)[0]} {_the(rng)} {rng.choice(patient)}"
    form = rng.choice(verb)
    same = [
        alike,
        f"the {rng.choice(agent)} is {form[1]} the {rng.choice(patient)}",
        f"the {rng.choice(patient)} is {form[2]} by the {rng.choice(agent)}",
    ]
    denied = rng.choice(
        (
            f"the {agent[0]} does not {_stem(verb[0][0])} the {patient[0]}",
            f"the {agent[0]} never {verb[0][0]} the {patient[0]}",
            f"nobody {verb[0][0]} the {patient[0]}",
            f"the {agent[0]} is not {form[1]} the {patient[0]}",
        )
    )
    swapped = rng.choice(
        (
            f"the {rng.choice(patient)} {rng.choice(verb)[0]} the {rng.choice(agent)}",
            f"the {patient[0]} is {form[1]} the {agent[0]}",
            f"the {agent[0]} is {form[2]} by the {patient[0]}",
        )
    )
    guesses = f"the {agent[0]} {verb[0][0]} the {patient[0]}, or {other[0][0]} it, or {rng.choice(VERBS)[0][0]} it"
    kind = rng.choice(("same", "same", "same", "denied", "swapped", "guesses", "guessed", "place", "other"))
    if kind == "same":
        return Example(said, rng.choice(same), "entailment")
    if kind in ("denied", "swapped"):
        wrong = denied if kind == "denied" else swapped
        return Example(*rng.choice(((said, wrong), (wrong, said))), "contradiction")
    if kind == "guesses":
        return Example(guesses, rng.choice(same), "neutral")
    if kind == "guessed":
        return Example(said, guesses, "neutral")
    if kind == "place":
        return Example(alike, f"{rng.choice(same)} {rng.choice(PLACES)}", "neutral")
    return Example(said, f"the {agent[0]} {other[0][0]} the {patient[0]}", "neutral")


def _worn(rng: Random) -> tuple[str, str]:
    return rng.choice((f" in {rng.choice(COLOURS)}", "")), rng.choice((f" in {rng.choice(COLOURS)}", "", ""))


def _the(rng: Random) -> str:
    return rng.choice(("the", "the", "a"))


def _stem(verb: str) -> str:
    first, _, rest = verb.partition(" ")
    bare = f"{first[:-3]}y" if first.endswith("ies") else first[:-2] if first.endswith(("shes", "ches")) else first[:-1]
    return f"{bare} {rest}".strip()


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Example],
    *,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train a classifier for one pass over the pairs, with a linear schedule."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        steps = len(pairs) // batch
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(steps, 1))
        model.train()
        for step in range(steps):
            rows = pairs[step * batch : (step + 1) * batch]
            inputs = tokenizer(
                [row.premise for row in rows], [row.hypothesis for row in rows], padding=True, return_tensors="pt"
            )
            labels = torch.tensor([LABELS.index(row.label) for row in rows])
            loss = model(**inputs, labels=labels).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write a folder as the hub has it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tuned(base: Path, folder: Path, *, count: int, seed: int) -> Path:
    """Tune an encoder, such as MiniLM, into a model of inference, and save it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            dtype=torch.float32,
        )
    train(model, tokenizer, examples(count, seed), batch=32, learning_rate=1.5e-4, seed=seed)
    return save(model, tokenizer, folder)
