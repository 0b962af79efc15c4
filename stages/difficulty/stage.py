"""Roll out the policy that a GRPO row starts from, and keep the training samples that can teach it
something.

Run as ``python -m stages difficulty ROW`` (a row of ``difficulty``, before the row of ``grpo`` with
the same name); writes ``data/difficulty/ROW``, whose ``train`` folder that row reads in place of
``data/samples/train``.
"""

from __future__ import annotations

import sys

from stages.difficulty.histogram import draw_histogram
from stages.difficulty.rollouts import candidates, roll_out
from stages.domain.rl.difficulty import counts
from stages.lib.engine.process import check_engine
from stages.lib.rows.jsonl import write_json, write_rows
from stages.params import load_params
from stages.runtime import paths
from stages.runtime.dispatch import one_row
from stages.tracking.runs.run import stage_run


def main(*arguments: str) -> int:
    params = load_params()
    name = one_row("difficulty", list(arguments), list(params.difficulty))
    engine = check_engine()  # before a model is loaded
    with stage_run(f"difficulty@{name}", params) as run:
        run.tag({"rollout_engine": engine})
        samples, out = candidates(params, name), paths.difficulty(name)
        rolled = roll_out(params, name, samples)
        task_counts = counts(rolled)
        keep = {row.sample_id for row in rolled if row.kept}
        for task in task_counts:
            write_rows(
                paths.samples_file(out, "train", task), [s for s in samples if s.task == task and s.sample_id in keep]
            )
        write_rows(out / paths.ROLLOUTS_FILE, rolled)
        table = {task: count.model_dump() for task, count in task_counts.items()}
        write_json(out / paths.SUMMARY_FILE, {"schema_version": 1, "tasks": table})
        draw_histogram(rolled, out / paths.HISTOGRAM_FILE)
        run.summary({f"{task}/{key}": float(n) for task, count in table.items() for key, n in count.items()})
        print(f"difficulty@{name}: {len(keep)} of {len(samples)} samples kept; see {out / paths.HISTOGRAM_FILE}")
        empty = [task for task, count in task_counts.items() if not count.kept]
        for task in empty:  # after saving, so that the scores can be inspected
            count = task_counts[task]
            print(
                f"error: difficulty.{name}: of {count.rolled_out} {task} samples {count.always_right} are always right"
                f" and {count.never_moves} never move: none is left for grpo.{name}.tasks.{task} (weight"
                f" {params.grpo[name].tasks[task]:g}); lower min_spread or set drop_always_right: false, or set that"
                f" weight to 0 ({out / paths.ROLLOUTS_FILE} holds the scores)",
                file=sys.stderr,
            )
    # 2: the parameters are the cause, and a retry would only roll out everything again.
    return 2 if empty else 0
