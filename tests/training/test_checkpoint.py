"""A run that was cut off goes on with the next epoch: same weights, optimizer and best score, the present schedule."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from monai.optimizers import WarmupCosineSchedule

from volseg.training.checkpoint import BestSaver, ResumableState


def _trainer(path, *, stop_after: int | None = None):
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    seen: list[int] = []

    def step(engine, batch):
        optimizer.zero_grad()
        (net(batch) ** 2).sum().backward()
        optimizer.step()
        return engine.state.epoch

    engine = Engine(step)
    ResumableState(path, {"model": net, "optimizer": optimizer}).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED)
    def note(engine):
        seen.append(engine.state.epoch)
        if stop_after is not None and engine.state.epoch == stop_after:
            engine.terminate()

    return engine, net, seen


DATA = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])]


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole, whole_net, _ = _trainer(tmp_path / "whole.pt")
    whole.run(DATA, max_epochs=4)

    first, _, seen = _trainer(tmp_path / "state.pt", stop_after=2)
    first.run(DATA, max_epochs=4)
    assert seen == [1, 2]
    second, net, seen = _trainer(tmp_path / "state.pt")
    second.run(DATA, max_epochs=4)
    assert seen == [3, 4]
    assert torch.equal(net.weight, whole_net.weight)


def test_the_state_is_replaced_at_once_and_leaves_no_partial_file(tmp_path):
    engine, _, _ = _trainer(tmp_path / "deep" / "state.pt")
    engine.run(DATA, max_epochs=1)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state.pt"]
    assert torch.load(tmp_path / "deep" / "state.pt", weights_only=True)["epoch"] == 1


def _scheduled(path, *, epochs: int, lr: float = 0.1, stop_after: int | None = None):
    """Two steps an epoch, half a cosine over all of them. Notes the rate after every step."""
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=0, t_total=2 * epochs)
    rates: list[float] = []

    def step(_, batch):
        optimizer.zero_grad()
        (net(batch) ** 2).sum().backward()
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])

    engine = Engine(step)
    ResumableState(path, {"lr_scheduler": schedule, "model": net, "optimizer": optimizer}).attach(engine)
    if stop_after is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda e: e.terminate())
    engine.run(DATA, max_epochs=epochs)
    return net, optimizer, schedule, rates


def test_with_the_same_arguments_the_schedule_goes_on_to_the_bit(tmp_path):
    whole, _, one, rates = _scheduled(tmp_path / "whole.pt", epochs=4)
    _scheduled(tmp_path / "state.pt", epochs=4, stop_after=1)
    net, _, other, resumed = _scheduled(tmp_path / "state.pt", epochs=4)
    assert resumed == rates[2:]
    assert torch.equal(net.weight, whole.weight)
    # The lambdas are a method of each schedule itself, and no part of its place.
    assert {k: v for k, v in one.state_dict().items() if k != "lr_lambdas"} == {
        k: v for k, v in other.state_dict().items() if k != "lr_lambdas"
    }


def test_more_epochs_and_another_rate_follow_the_present_schedule(tmp_path):
    assert _scheduled(tmp_path / "state.pt", epochs=2)[3][-1] == 0
    _, optimizer, schedule, rates = _scheduled(tmp_path / "state.pt", epochs=4, lr=0.05)
    # cos runs over 8 steps now: after step 6 three quarters are done, after step 8 all.
    assert rates[1] == pytest.approx(0.05 * (1 - 0.5**0.5) / 2)
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0
    assert optimizer.param_groups[0]["initial_lr"] == 0.05
    assert (schedule.t_total, schedule.last_epoch, schedule.get_last_lr()) == (8, 8, [0])


class _Scripted(Metric):
    """The key metric of the epoch that is validated: `scores[epoch]`, or what goes wrong then."""

    def __init__(self, scores):
        self.scores, self.epoch = scores, 0
        super().__init__()

    def reset(self):
        pass

    def update(self, output):
        pass

    def iteration_completed(self, engine):
        self.epoch = engine.state.epoch

    def compute(self):
        score = self.scores[self.epoch]
        if isinstance(score, Exception):
            raise score
        return score


def _validated(folder, scores, *, epochs):
    """As in train.json: the state's handler comes before the validation's. The weight is the number of the epoch."""
    net = torch.nn.Linear(1, 1, bias=False)
    best = BestSaver(str(folder), {"model": net})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}],
        network=net,
        key_val_metric={"m": _Scripted(scores)},
        val_handlers=[best],
    )
    seen: list[int] = []

    def step(engine, _):
        net.weight.data.fill_(engine.state.epoch)
        seen.append(engine.state.epoch)

    engine = Engine(step)
    ResumableState(folder / "state.pt", {"model": net, "best": best}).attach(engine)
    ValidationHandler(1, evaluator).attach(engine)
    engine.run([0], max_epochs=epochs)
    return evaluator.state, seen


def _best_epoch(folder) -> float:
    return torch.load(folder / "model_best.pt", weights_only=True)["weight"].item()


def test_a_worse_epoch_after_a_resume_leaves_the_best_weights_alone(tmp_path):
    _validated(tmp_path, {1: 0.3, 2: 0.7, 3: 0.5}, epochs=3)
    state, seen = _validated(tmp_path, {4: 0.1, 5: 0.2}, epochs=5)
    assert seen == [4, 5]
    assert _best_epoch(tmp_path) == 2
    assert (state.best_metric, state.best_metric_epoch) == (0.7, 2)
    state, _ = _validated(tmp_path, {6: 0.8}, epochs=6)
    assert _best_epoch(tmp_path) == 6
    assert (state.best_metric, state.best_metric_epoch) == (0.8, 6)


def test_a_run_stopped_while_validating_validates_that_epoch_again(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        _validated(tmp_path, {1: 0.3, 2: RuntimeError("killed")}, epochs=3)
    _, seen = _validated(tmp_path, {2: 0.7, 3: 0.5}, epochs=3)
    assert seen == [2, 3]
    assert _best_epoch(tmp_path) == 2


def test_a_state_of_before_and_best_weights_that_are_gone_begin_a_new_best(tmp_path):
    _validated(tmp_path, {1: 0.7}, epochs=1)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save({name: part for name, part in saved.items() if name != "best"}, tmp_path / "state.pt")
    _validated(tmp_path, {2: 0.6}, epochs=2)
    assert _best_epoch(tmp_path) == 2

    (tmp_path / "model_best.pt").unlink()
    _validated(tmp_path, {3: 0.4}, epochs=3)
    assert _best_epoch(tmp_path) == 3


def test_nothing_validated_is_nothing_kept(tmp_path):
    best = BestSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)})
    assert best.state_dict() == {}
    best.load_state_dict({"scores": [(0.5, "x")], "best_metric": 0.5, "best_metric_epoch": 1})
    assert best.state_dict() == {}, "without an evaluator there is no best"
