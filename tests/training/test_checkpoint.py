"""A run that was cut off goes on with the next epoch, with the same weights, optimizer and schedule."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events

from volseg.training.checkpoint import ResumableState


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
