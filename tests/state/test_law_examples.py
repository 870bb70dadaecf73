"""The examples in ``schemas/README.md`` are code: they run, and they keep the law they illustrate."""

import re
from pathlib import Path
from typing import Any

import pytest

from snapkit.state import converters
from snapkit.state.converters import Refusal, convert_sections
from snapkit.state.describe import render
from snapkit.state.law import violations
from snapkit.state.releases import Release, freeze
from snapkit.state.schema import U8, SectionId, State, schema, versions_of

README = Path(__file__).parents[2] / "schemas/README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
LAMP = SectionId("lamp", "0")


def names() -> dict[str, Any]:
    """Return what the examples take for granted."""
    return {
        "schema": schema,
        "State": State,
        "U8": U8,
        "Refuse": converters.Refuse,
        "Sections": converters.Sections,
        "upgrade": converters.upgrade,
        "downgrade": converters.downgrade,
        "machine_upgrade": converters.machine_upgrade,
    }


def test_adding_a_field_as_the_readme_does_keeps_the_law_and_refuses_what_it_says():
    first = Release(release="0.1.0", kinds={"lamp": 1})
    with converters.temporary(first, kinds=("lamp",)):
        exec(BLOCKS[0], names())
        frozen = freeze(first, "2020-01-31", {"lamp/1": render(versions_of("lamp")[1])})
    with converters.temporary(frozen, Release(release="0.2.0", kinds={"lamp": 2}), kinds=("lamp",)):
        scope = names()
        exec(BLOCKS[0] + BLOCKS[1], scope)
        files = {f"lamp/{version}": render(each) for version, each in versions_of("lamp").items()}
        assert [str(finding) for finding in violations(files)] == []
        assert convert_sections({LAMP: scope["LampState1"](lit=1)}, "0.1.0", "0.2.0") == {
            LAMP: scope["LampState"](lit=1)
        }
        with pytest.raises(Refusal, match=r"lamp/0.colour is 4, must be 0 \(white\), the only colour of version 1"):
            convert_sections({LAMP: scope["LampState"](lit=1, colour=4)}, "0.2.0", "0.1.0")


def test_machine_converter_of_the_readme_is_declared_as_it_says():
    with converters.temporary(kinds=("lamp", "panel")):
        exec(BLOCKS[-1], names())
        (step,) = converters.machine_steps()
        assert (step.from_release, step.to_release, set(step.changes)) == (
            "0.2.0",
            "0.3.0",
            {"lamp.level", "panel.level"},
        )
