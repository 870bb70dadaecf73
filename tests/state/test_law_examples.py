"""The examples in ``schemas/README.md`` are code: they run, and they keep the law they illustrate."""

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from snapkit.errors import ImageError
from snapkit.state import converters
from snapkit.state.converters import Refusal, convert_sections
from snapkit.state.describe import render
from snapkit.state.law import violations
from snapkit.state.releases import Release, freeze
from snapkit.state.schema import U8, U16, SectionId, State, doc, schema, versions_of

README = Path(__file__).parents[2] / "schemas/README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
TITLED = dict(
    re.findall(r"\*\*([A-Z][^*]*)\.\*\* (?:(?!\*\*|```).)*```python\n(.*?)```", README.read_text(), re.DOTALL)
)
CHANGES = [
    ("Add a field", {"level": 3}, {"level": 3, "colour": 0}, {"colour": 4}),
    ("Drop a field", {"level": 0}, {}, None),
    ("Rename a field", {"level": 3}, {"brightness": 3}, None),
    ("Widen a field", {"level": 255}, {"level": 255}, {"level": 256}),
    ("Narrow a field", {"level": 100}, {"level": 100}, None),
    ("Change what a field means", {"level": 51}, {"level": 20}, None),
    ("Re-type or split a field", {"level": 0x2F}, {"coarse": 2, "fine": 15}, {"fine": 16}),
    ("Change a default", {"level": 0}, {"level": 0}, None),
]
"""Title of the example, fields of version 1, of version 2, and of a version 2 that version 1 cannot hold."""
LAMP = SectionId("lamp", "0")


def names() -> dict[str, Any]:
    """Return what the examples take for granted."""
    return {
        "schema": schema,
        "State": State,
        "U8": U8,
        "U16": U16,
        "Annotated": Annotated,
        "Meta": Meta,
        "doc": doc,
        "Refuse": converters.Refuse,
        "Sections": converters.Sections,
        "upgrade": converters.upgrade,
        "downgrade": converters.downgrade,
        "machine_upgrade": converters.machine_upgrade,
    }


@pytest.mark.parametrize(("title", "older", "newer", "refused"), CHANGES, ids=[change[0] for change in CHANGES])
def test_every_permitted_change_of_the_readme_keeps_the_law_and_goes_both_ways(title, older, newer, refused):
    first = Release(release="0.1.0", kinds={"lamp": 1})
    with converters.temporary(first, kinds=("lamp",)):
        exec(BLOCKS[0], names())
        frozen = freeze(first, "2020-01-31", {"lamp/1": render(versions_of("lamp")[1])})
    with converters.temporary(frozen, Release(release="0.2.0", kinds={"lamp": 2}), kinds=("lamp",)):
        scope = names()
        exec(BLOCKS[0] + TITLED[title], scope)
        files = {f"lamp/{version}": render(each) for version, each in versions_of("lamp").items()}
        assert [str(finding) for finding in violations(files)] == []
        before, after = {LAMP: scope["LampState1"](lit=1, **older)}, {LAMP: scope["LampState"](lit=1, **newer)}
        assert convert_sections(before, "0.1.0", "0.2.0") == after
        assert convert_sections(after, "0.2.0", "0.1.0") == before
        if refused is not None:
            (name,) = refused
            with pytest.raises(Refusal, match=f"lamp/0.{name} is {refused[name]}\\b.*must be "):
                convert_sections({LAMP: scope["LampState"](lit=1, **refused)}, "0.2.0", "0.1.0")


def test_narrowing_as_the_readme_does_refuses_a_file_that_holds_more():
    with converters.temporary(
        Release(release="0.1.0", kinds={"lamp": 1}), Release(release="0.2.0", kinds={"lamp": 2}), kinds=("lamp",)
    ):
        scope = names()
        exec(BLOCKS[0] + TITLED["Narrow a field"], scope)
        with pytest.raises(ImageError, match="level"):
            convert_sections({LAMP: scope["LampState1"](lit=1, level=101)}, "0.1.0", "0.2.0")


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
