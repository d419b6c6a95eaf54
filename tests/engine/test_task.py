"""What makes a finished cell a failed one."""

import math

import pytest
import torch

from fula_fast import engine
from fula_fast.engine import solo
from fula_fast.engine.task import Outcome, WaveTask, check_result
from fula_fast.models import build
from fula_fast.pipelines import Batch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

BATCH = 32
EXECUTORS = {"solo": solo.run_wave, "wave": engine.run_wave}


class Random:
    """A stream of the same six batches of noise."""

    steps, batch_size = 6, BATCH

    def epoch(self, epoch=0, start_step=0):
        for seed in range(start_step, self.steps):
            rng = torch.Generator().manual_seed(seed)
            images = torch.rand(BATCH, 3, 8, 8, generator=rng)
            yield Batch(images, torch.randint(5, (BATCH,), generator=rng), torch.arange(BATCH))


def network(seed: int):
    torch.manual_seed(seed)
    return build("resnet18", num_classes=5, input_shape=(3, 8, 8), width=4).eval()


def cell(method: str, site: int, rate: float) -> Cell:
    rule = protocol("fula-v2", epochs=1, init="random")
    rule = rule.model_copy(update={"lr": rate})  # past the check of a rate's bound
    return Cell("a", "b", site, site, method, {method: 1.0}, rule, id=f"{method} {site} {rate}")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_overflow_that_no_loss_shows_is_a_failure(executor):
    """Behind a batch norm an activation of 1e30 gives a finite loss; Adam's second moment is
    infinite, and the cell would stand still for the rest of its training."""
    cells = [cell(m, s, r) for m in ("slm", "tlm") for s in (1, 9) for r in (1e30, 1e-3)]
    donors = network(0), network(1)
    task = WaveTask(
        cells, *donors, Random(), lambda samples: torch.zeros(0), {"own": Random().epoch}, 1
    )
    outcomes = [o for group in EXECUTORS[executor](task) for o in group]
    assert len(outcomes) == 8
    for outcome in outcomes:
        bad = outcome.cell.protocol.lr == 1e30
        assert bad == bool(outcome.error), outcome.cell.id
        assert bad != ("accuracy" in outcome.metrics)
        if bad:
            assert "lower lr" in outcome.error and "\n" not in outcome.error


@pytest.mark.parametrize("part", ["tensors", "statistics", "metrics"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_results_that_are_not_finite(part, value):
    good = {
        "metrics": {"accuracy": 0.5, "term_stitch": 0.2, "loss": None, "train_seconds": 1.0},
        "tensors": {"weight": torch.ones(3, 2)},
        "statistics": {"tail.stages.2.bn1.running_var": torch.ones(4)},
    }
    outcome = Outcome(cell("tlm", 1, 1e-3), **good)
    assert check_result(outcome).error is None
    assert check_result(outcome).metrics == outcome.metrics
    name = {"tensors": "weight", "statistics": "tail.stages.2.bn1.running_var"}.get(part)
    if name is None:
        name, good[part] = "term_stitch", good[part] | {"term_stitch": value}
    else:
        good[part][name].view(-1)[1] = value
    found = check_result(Outcome(cell("tlm", 1, 1e-3), **good))
    assert found.error == f"after training {name} is not finite; lower lr, or check the donors"
    assert found.metrics == {"train_seconds": 1.0} and not found.tensors and not found.statistics


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_end_without_finite_logits_gives_no_cell_a_result(executor, value):
    """A NaN in the head reaches no loss of dm, hint and fula: both models "agree" everywhere."""
    rule = protocol("fula-v2", epochs=1, init="random")
    kinds = {"dm": {}, "hint": {"hint": 1.0}, "fula": {"fula": 1.0}}
    cells = [
        Cell("a", "b", 9, 9, m, objective, rule, id=m, seed=0) for m, objective in kinds.items()
    ]
    front, end = network(0), network(1)
    with torch.no_grad():
        end.state()["fc.bias"][:] = value
    noise = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    task = WaveTask(cells, front, end, Random(), lambda samples: noise, {"own": Random().epoch}, 1)
    outcomes = [o for group in EXECUTORS[executor](task) for o in group]
    assert [o.error is None for o in outcomes] == [False] * 3
    for outcome in outcomes:
        assert f"no finite logits on {6 * BATCH} test images" in outcome.error
        assert "accuracy" not in outcome.metrics and not outcome.tensors
