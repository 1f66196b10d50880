"""A state saved by another thread is of before a step or after it, and the run goes on as ever."""

import copy
import pickle
import threading
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from anatomy import same_values, values
from tiny import Stack, batches, stack
from torch_xgb import BoostedLowRankOptimizer
from training import train


class Held(SGD):
    """Has stepped, and goes no further before somebody says so."""

    stepped: threading.Event | None = None
    go_on: threading.Event

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if self.stepped is not None:
            self.stepped.set()
            self.go_on.wait(5)


def boosted(model: Stack) -> BoostedLowRankOptimizer:
    return BoostedLowRankOptimizer(Held, model, kappa=2, layers_per_booster=2, lr=1e-3)


def test_a_step_half_taken_is_waited_for_and_counted_once() -> None:
    model, twin = stack(), stack()
    optimizer, plain = boosted(model), boosted(twin)
    base: Any = optimizer.base
    data = batches(5)
    x, y = data[0]
    cross_entropy(model(x), y).backward()
    base.stepped, base.go_on = threading.Event(), threading.Event()
    stepping = threading.Thread(target=optimizer.step)
    stepping.start()
    assert base.stepped.wait(5)
    states: list[Any] = []
    saving = threading.Thread(target=lambda: states.append(optimizer.state_dict()))
    saving.start()
    saving.join(0.2)
    assert optimizer.booster_step == 0 and not states
    base.go_on.set()
    stepping.join()
    saving.join()
    assert optimizer.booster_step == 1
    base.stepped = None
    optimizer.zero_grad()
    again = stack()
    again.load_state_dict(model.state_dict())
    resumed = boosted(again)
    resumed.load_state_dict(states[0])
    train(model, optimizer, data[1:])
    train(again, resumed, data[1:])
    train(twin, plain, data)
    assert same_values(model, values(twin)) and same_values(again, values(twin))


def test_threads_that_save_all_the_time() -> None:
    model, twin = stack(), stack()
    optimizer, plain = boosted(model), boosted(twin)
    over, failed = threading.Event(), []

    def save() -> None:
        while not over.is_set():
            try:
                optimizer.state_dict()
            except Exception as error:  # noqa: BLE001
                failed.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    train(model, optimizer, batches(12))
    over.set()
    thread.join()
    train(twin, plain, batches(12))
    assert not failed
    assert same_values(model, values(twin))
    assert optimizer.booster_index == plain.booster_index == 6


def test_a_copy_is_held_by_nobody() -> None:
    optimizer = boosted(stack())
    with optimizer.boosting.alone:
        twins = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
        for twin in twins:
            thread = threading.Thread(target=twin.merge)
            thread.start()
            thread.join(5)
            assert not thread.is_alive() and twin.booster_index == 1
    assert torch.is_grad_enabled()
