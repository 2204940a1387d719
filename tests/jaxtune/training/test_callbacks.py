"""Callbacks: added and taken out, as classes or instances; what they cannot hear is refused."""

from typing import Any

import pytest
import transformers

from jaxtune import SFTConfig, TrainerCallback
from jaxtune.training.callbacks import EVENTS, INSIDE_A_STEP, CallbackHandler
from jaxtune.training.state import TrainerControl


class First(TrainerCallback):
    def on_step_end(self, *_: Any, **__: Any) -> TrainerControl:
        return TrainerControl(should_save=True)


class Second(First):
    """Also one of the first kind."""


def handler(*callbacks: Any) -> CallbackHandler:
    return CallbackHandler(callbacks, SFTConfig())


def test_callbacks_are_found_by_class_or_by_themselves() -> None:
    first, second = First(), Second()
    its = handler(first, Second, second)
    assert [type(callback) for callback in its.callbacks] == [First, Second, Second]
    assert its.pop(second) is second
    assert its.pop(First) is first
    assert type(its.pop(First)) is Second
    assert its.pop(First) is None
    assert its.callbacks == []


def test_what_a_callback_returns_becomes_the_control() -> None:
    its = handler(First)
    its.tell("on_step_end")
    assert its.control.should_save


@pytest.mark.parity
def test_every_event_of_transformers_is_told_or_refused() -> None:
    theirs = {name for name in vars(transformers.TrainerCallback) if name.startswith("on_")}
    assert theirs == {*EVENTS, *INSIDE_A_STEP, "on_push_begin"}
    assert {name for name in vars(TrainerCallback) if name.startswith("on_")} == set(EVENTS)


@pytest.mark.parametrize("event", INSIDE_A_STEP)
@pytest.mark.parametrize("base", [TrainerCallback, transformers.TrainerCallback])
def test_what_happens_inside_a_step_cannot_be_heard(base: type, event: str) -> None:
    def listen(*_: Any, **__: Any) -> None: ...

    with pytest.raises(ValueError, match=rf"inside a step, .*; got Listens.{event}. Use on_step"):
        handler(type("Listens", (base,), {event: listen}))
    handler(base())


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match=r"methods of jaxtune\.TrainerCallback; got dict"):
        handler({})
