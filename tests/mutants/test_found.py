"""What mutants have found: each file that was taken and then failed otherwise than it may, now refused by its place."""

from random import Random
from typing import Any

import pytest

from snapkit.errors import ImageError
from snapkit.restore.restore import prepare
from tests.mutants.draft import Draft
from tests.mutants.stock import stock

FOUND: dict[str, tuple[str, str, Any]] = {
    # struct.error at the first resume: KVM's field is a signed one
    "pit age": ("pit/0", "channels[1].load_age_ns", (1 << 64) - 1),
    # KVM_GET_TSC_KHZ gives a rate from 2^31 on as a negative number, which looks like an errno: no save any more
    "tsc rate": ("vcpu-x86-64/0", "tsc_khz", 1 << 31),
}


@pytest.mark.parametrize("name", FOUND)
def test_is_refused_by_its_place(tmp_path, name):
    section, path, value = FOUND[name]
    draft = Draft(stock()[0], Random(0))
    (part,) = (part for part in draft.parts if part.name == section)
    (place,) = (place for place in draft.places(part) if place.path == path)
    place.put(value)
    draft.write(tmp_path / "found.snap")
    with pytest.raises(ImageError) as caught:
        prepare(str(tmp_path / "found.snap"))
    assert [(one.component, one.path) for one in caught.value.findings] == [(section, path)]
