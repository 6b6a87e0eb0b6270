"""Every command offers all the names of ``mkc_fast.names``, and no module spells the lists of them again."""

from __future__ import annotations

import dataclasses
import typing
from enum import Enum

import pytest

from mkc_fast import names
from mkc_fast.cli import choices
from mkc_fast.engine.options import EngineOptions


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        (choices.Mode, names.MODES),
        (choices.Level, names.LEVELS),
        (choices.OnFailure, names.ON_FAILURE),
        (choices.Format, names.FORMATS),
        (choices.Provider, names.PROVIDERS),
        (choices.Precision, names.PRECISIONS),
    ],
)
def test_a_command_offers_every_name_in_the_same_order(choice: type[Enum], offered: tuple[str, ...]) -> None:
    assert tuple(each.value for each in choice) == offered
    assert tuple(each.name.replace("_", "-") for each in choice) == offered


def test_each_type_has_exactly_the_constants_of_its_name() -> None:
    constants = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    listed = {
        name
        for kind in (
            names.Stage,
            names.Mode,
            names.Level,
            names.OnFailure,
            names.AudioFormat,
            names.InputForm,
            names.Provider,
            names.Precision,
            names.Graph,
        )
        for name in typing.get_args(kind)
    }
    assert constants == listed | set(names.GRAPH_FILES)


def test_timed_stages_are_stages_in_their_order() -> None:
    stages = typing.get_args(names.Stage)
    assert [stage for stage in stages if stage in names.TIMED_STAGES] == list(names.TIMED_STAGES)
    assert set(stages) - set(names.TIMED_STAGES) == {names.LOOKUP}


def test_engine_options_begin_with_a_name_of_each_list() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(EngineOptions)}
    assert defaults["provider"] in names.PROVIDERS
    assert defaults["precision"] in names.PRECISIONS
