"""Averaged weights: the formula, off by default, part of what a cut-off run takes up again."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from volseg.training.averaging import AveragedWeights
from volseg.training.checkpoint import ResumableState

DATA = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]]), torch.tensor([[3.0, 0.1]])]


def trainer(path, decay, *, stop_after=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=0.5), nn.Linear(3, 1)).double()
    net[1].eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)

    def step(engine, batch):
        optimizer.zero_grad()
        (net(batch.double()) ** 2).sum().backward()
        optimizer.step()

    engine = Engine(step)
    ema = AveragedWeights(net, decay)
    ResumableState(path, {"model": net, "optimizer": optimizer, "ema": ema}).attach(engine)
    ema.attach(engine)
    if stop_after is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda e: e.terminate())
    return engine, net, ema


def test_the_average_is_the_formula_step_by_step(tmp_path):
    engine, net, ema = trainer(tmp_path / "s.pt", 0.9)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    steps = 0

    @engine.on(Events.ITERATION_COMPLETED)
    def follow(_):
        nonlocal steps
        steps += 1
        d = min(0.9, (1 + steps) / (10 + steps))
        for name, value in net.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * value.detach()

    engine.run(DATA, max_epochs=5)
    for name, value in ema.averaged.named_parameters():
        assert torch.allclose(value, expected[name], rtol=1e-12, atol=0), name
    assert not torch.equal(ema.averaged[0].weight, net[0].weight)
    assert ema.steps == 15


def test_decay_zero_is_the_network_itself_and_keeps_nothing(tmp_path):
    engine, net, ema = trainer(tmp_path / "s.pt", 0.0)
    engine.run(DATA, max_epochs=1)
    assert ema.averaged is net and ema.state_dict() == {}


def test_buffers_are_the_network_s_own():
    net = nn.BatchNorm1d(2)
    ema = AveragedWeights(net, 0.99)
    net.running_mean.fill_(7.0)
    net.num_batches_tracked.fill_(5)
    ema._update(Engine(lambda e, b: None))
    assert ema.averaged.running_mean.tolist() == [7.0, 7.0] and int(ema.averaged.num_batches_tracked) == 5


def test_a_run_cut_off_ends_in_the_same_bits_of_the_average(tmp_path):
    whole, _, whole_ema = trainer(tmp_path / "whole.pt", 0.95)
    whole.run(DATA, max_epochs=4)
    cut, _, _ = trainer(tmp_path / "cut.pt", 0.95, stop_after=2)
    cut.run(DATA, max_epochs=4)
    again, _, again_ema = trainer(tmp_path / "cut.pt", 0.95)
    again.run(DATA, max_epochs=4)
    ours, theirs = whole_ema.averaged.state_dict(), again_ema.averaged.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert whole_ema.steps == again_ema.steps == 12


def test_a_state_from_before_averages_were_kept_begins_one(tmp_path):
    engine, _, _ = trainer(tmp_path / "s.pt", 0.0)
    engine.run(DATA, max_epochs=1)
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    del state["ema"]
    torch.save(state, tmp_path / "s.pt")
    engine, net, ema = trainer(tmp_path / "s.pt", 0.9)
    begun = {}
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), lambda _: begun.update(copy.deepcopy(net.state_dict())))
    engine.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda _: begun.update(average=ema.averaged[0].weight.clone())
    )
    engine.run(DATA, max_epochs=2)
    assert torch.equal(begun["average"], begun["0.weight"]) and ema.steps == 3


def test_a_state_without_the_network_is_refused(tmp_path):
    engine, _, _ = trainer(tmp_path / "s.pt", 0.0)
    engine.run(DATA, max_epochs=1)
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    del state["model"]
    torch.save(state, tmp_path / "s.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        trainer(tmp_path / "s.pt", 0.0)[0].run(DATA, max_epochs=2)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_cannot_be_is_refused(decay):
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        AveragedWeights(nn.Linear(1, 1), decay)
