"""Which modules an adapter touches: PEFT's rules for names, patterns and layers."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from convert import names_module
from jaxtune.adapters.modules import Place, linear_places, places
from jaxtune.models.decoder import CausalLM

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WHOLE = ("embed_tokens", "lm_head")

Layers = Sequence[int] | int | None
Number = TypeVar("Number", int, float)


def select_modules(
    model: CausalLM,
    target_modules: Sequence[str] | str,
    *,
    layers_to_transform: Layers = None,
    layers_pattern: Sequence[str] | str | None = None,
) -> list[str]:
    """The module names that PEFT would adapt.

    Args:
      model: The model to adapt.
      target_modules: Names (a module is selected if its full name equals one or ends in "." and
        one); "all-linear", every projection but the head; or another string, a regular expression
        that must match a full name.
      layers_to_transform: Layer indices to keep, with a list of names only; None is all.
      layers_pattern: Name of the list of layers that the indices count in.

    Returns:
      Full names, in the model's order.

    Raises:
      ValueError: A name, a pattern or an index selects nothing, or they cannot go together.
    """
    available = [name for place in linear_places(model) for name in place.names]
    if isinstance(target_modules, str):
        if layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` goes with a list of target names, as in PEFT; got "
                f"target_modules={target_modules!r}. Name the projections in a list, or put the "
                "layers into the regular expression."
            )
        return _by_pattern(available, target_modules)
    kept = _by_name(available, list(target_modules))
    if layers_to_transform is None:
        if layers_pattern:
            raise ValueError(
                "`layers_pattern` needs `layers_to_transform`, as in PEFT; got "
                f"{layers_pattern!r} alone. Pass the layers' indices too."
            )
        return kept
    return _in_layers(model, kept, layers_to_transform, layers_pattern)


def _by_pattern(available: list[str], pattern: str) -> list[str]:
    if pattern == "all-linear":
        return available
    expression = _compiled(pattern)
    for name in WHOLE:
        if any(expression.fullmatch(full) for full in (name, f"model.{name}")):
            raise ValueError(
                f"a regular expression for `target_modules` must match projections; {pattern!r} "
                f"matches `{name}` too, which is trained whole. Narrow it, and name `{name}` in "
                "`modules_to_save`."
            )
    found = [name for name in available if expression.fullmatch(name)]
    if not found:
        raise ValueError(
            "`target_modules` as a string must be 'all-linear' or a regular expression that "
            f"matches whole module names; got {pattern!r}, which matches none of "
            f"{len(available)} such as {available[0]!r}. Write r'.*\\.q_proj', or a list of names."
        )
    return found


def _by_name(available: list[str], names: list[str]) -> list[str]:
    unmatched = [n for n in names if not any(names_module(n, full) for full in available)]
    if unmatched or not names:
        choices = sorted({full.rsplit(".", 1)[-1] for full in available})
        raise ValueError(
            "`target_modules` must be a list of projections of this model; got "
            f"{names or 'none'}, of which {unmatched or 'nothing'} matches no module. "
            f"Choose from {choices}, or pass 'all-linear'."
        )
    return [full for full in available if any(names_module(n, full) for n in names)]


def _in_layers(
    model: CausalLM, names: list[str], layers: Layers, pattern: Sequence[str] | str | None
) -> list[str]:
    indices = [layers] if isinstance(layers, int) else list(layers or ())
    count = model.config.num_hidden_layers
    wrong = [index for index in indices if not (type(index) is int and 0 <= index < count)]
    if wrong or not indices:
        raise ValueError(
            f"`layers_to_transform` must be layer indices from 0 to {count - 1}; got "
            f"{layers!r}. Leave it out to adapt every layer."
        )
    patterns = [pattern] if isinstance(pattern, str) else list(pattern or (r"[^.]*",))
    expressions = [_compiled(rf"(?:^|.*?\.){part}\.(?P<index>\d+)\.") for part in patterns]
    kept = []
    for name in names:
        matches = (expression.match(name) for expression in expressions)
        match = next((found for found in matches if found is not None), None)
        if match is not None and int(match["index"]) in indices:
            kept.append(name)
    if not kept:
        raise ValueError(
            "`layers_pattern` must name the model's list of layers, 'layers'; got "
            f"{pattern!r}, under which no target stands. Leave it out."
        )
    return kept


def value_of(patterns: Mapping[str, Number], name: str) -> Number | None:
    """The value of the first pattern that PEFT finds in a module's name: it must end the name."""
    for pattern, value in patterns.items():
        if _compiled(rf"(.*\.)?({pattern})$").match(name):
            return value
    return None


def check_patterns(option: str, patterns: Mapping[str, Number], names: Sequence[str]) -> None:
    """Raise if a pattern of `rank_pattern` or `alpha_pattern` names no adapted module."""
    for pattern in patterns:
        if not any(value_of({pattern: 1}, name) is not None for name in names):
            raise ValueError(
                f"every key of `{option}` must be a name or regular expression that ends an "
                f"adapted module's name; {pattern!r} matches none of {len(names)} such as "
                f"{names[0]!r}."
            )


def select_whole(model: CausalLM, modules_to_save: Sequence[str]) -> list[Place]:
    """The modules that `modules_to_save` trains whole: those whose name ends in one, as in PEFT.

    Raises:
      ValueError: A name selects nothing, or some layers of a stack and not others.
    """
    selected = []
    unmatched = set(modules_to_save)
    for place in places(model):
        hits = [[n for n in modules_to_save if full.endswith(n)] for full in place.names]
        if any(hits) and not all(hits):
            raise ValueError(
                "`modules_to_save` must select a module in every layer or in none; "
                f"{list(modules_to_save)} selects some of `{place.pattern}`. Name it without "
                "the layer's index."
            )
        if all(hits):
            selected.append(place)
            unmatched.difference_update(*hits)
    tied = model.config.tie_word_embeddings
    if tied and "lm_head" in unmatched:
        unmatched.discard("lm_head")
        selected += [p for p in places(model) if p.path[-1] == "embed_tokens" and p not in selected]
    if unmatched:
        choices = sorted({place.path[-1] for place in places(model)})
        raise ValueError(
            f"`modules_to_save` must name modules of this model; {sorted(unmatched)} ends no "
            f"module's name. Choose from {choices}."
        )
    return selected


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"a pattern of module names must be a regular expression; got {pattern!r}: {error}."
        ) from error
