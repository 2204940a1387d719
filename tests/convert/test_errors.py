import pickle

from convert.errors import CheckpointError, broken, shown


def test_message_has_rule_got_wanted_and_cure_in_this_order():
    error = broken("a must be b", got="c", wanted="d", cure="Do e.")
    assert str(error) == "a must be b; got c; wanted d. Do e."


def test_error_is_a_value_error_that_survives_pickling():
    error = pickle.loads(pickle.dumps(broken("a", got="b", wanted="c", cure="d")))
    assert isinstance(error, CheckpointError)
    assert isinstance(error, ValueError)


def test_shown_cuts_long_and_deep_values():
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    assert len(shown("x" * 10_000)) <= 200
    assert len(shown(["x" * 10_000] * 10_000)) <= 200
    assert len(shown(deep)) <= 200


def test_shown_escapes_control_characters():
    assert "\x1b" not in shown("\x1b[2J")
