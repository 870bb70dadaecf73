"""The law of ``schemas/README.md``, checked: what may change between two releases and what must come with it.

`violations` looks at every version of every kind that is declared, at the schema files, at the list of releases and at
the converters, and reports all that is wrong at once. It is static: no State is converted here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from snapkit.errors import Finding, InternalError
from snapkit.state.changes import compare, names
from snapkit.state.converters import MachineStep, kind_steps, machine_step, machine_steps
from snapkit.state.describe import describe, render
from snapkit.state.releases import Release, digest, neighbours, releases, schema_file
from snapkit.state.schema import KINDS, Schema, versions_of
from snapkit.state.shape import max_encoded_len, shape_of, walk

Files = Mapping[str, bytes]
"""Content of schema files by ``kind/version``."""
STAMP_MAX = 16
NEW_VERSION = "as released: declare the next version, with both converters"
TAKE_BACK = "take it back from the repository (git checkout)"


def committed_files() -> dict[str, bytes]:
    """Return the schema files of this installation that a declaration or a release asks for."""
    wanted = {f"{kind}/{version}" for kind in KINDS for version in versions_of(kind)}
    wanted |= {f"{kind}/{version}" for each in releases() for kind, version in each.kinds.items()}
    found = {name: schema_file(f"{name}.json") for name in sorted(wanted)}
    return {name: content for name, content in found.items() if content is not None}


def violations(files: Files) -> list[Finding]:
    """Return every breach of the law by *files* (see `committed_files`), the releases, declarations and converters."""
    findings = [*_releases(files)]
    for kind in KINDS:
        findings += _kind(kind, files)
    findings += _machine_converters()
    declared = {f"{kind}/{version}" for kind in KINDS for version in versions_of(kind)}
    findings += [
        Finding(
            f"schemas/{name}.json", "", "there", "declared: a kind or version, once written, stays for ever", "removed"
        )
        for name in files
        if name not in declared
    ]
    return findings


def _releases(files: Files) -> Iterator[Finding]:
    """Check the list of releases against itself and against the files that it froze."""
    every = releases()
    yield from _edited(every, files)
    for each in every[:-1]:
        if each.released is None:
            yield _wrong(each, "released", "null", "a date: only the newest release may be open", "open")
    for older, newer in neighbours():
        for kind in older.kinds:
            if kind not in newer.kinds and kind not in _converted_by_machine(older, newer):
                expected = f"there, as release {older.release} writes it, or taken over by a machine converter"
                yield _wrong(newer, f"kinds.{kind}", "absent", expected, "removed")
    written: dict[str, int] = {}
    for each in every:
        if len(each.written_as) > STAMP_MAX:
            expected = f"a name of at most {STAMP_MAX} characters, which a preamble has room for"
            yield _wrong(each, "stamp", repr(each.written_as), expected, "stamp")
        yield from _release(each)
        for kind, version in each.kinds.items():
            last = written.get(kind, 0)
            if last != version and not 0 < version - last <= 1:
                expected = f"{last + 1}, the next" if last else "1, the first"
                yield _wrong(each, f"kinds.{kind}", str(version), expected, "skipped")
            written[kind] = version


def _edited(every: tuple[Release, ...], files: Files) -> Iterator[Finding]:
    """Check each released file once, whichever releases froze it."""
    frozen: dict[tuple[str, str], list[str]] = {}
    for each in every:
        for name, wanted in each.digests.items() if each.released else ():
            frozen.setdefault((name, wanted), []).append(each.release)
    for (name, wanted), froze in frozen.items():
        if name in files and digest(files[name]) != wanted:
            expected = f"as release {froze[0]} froze it, with SHA-256 {wanted}: {TAKE_BACK}"
            yield Finding(f"schemas/{name}.json", "", f"edited (SHA-256 {digest(files[name])})", expected, "edited")


def _release(each: Release) -> Iterator[Finding]:
    written = {f"{kind}/{version}" for kind, version in each.kinds.items()}
    for kind, version in each.kinds.items():
        if kind not in KINDS or version not in versions_of(kind):
            yield _wrong(
                each, f"kinds.{kind}", str(version), "declared: what was written once stays readable", "removed"
            )
    if each.released is None:
        if each.digests:
            yield _wrong(each, "digests", "there", "empty until it is released", "open")
        return
    if written != set(each.digests):
        expected = f"one for each of {', '.join(sorted(written))}"
        yield _wrong(each, "digests", f"for {', '.join(sorted(each.digests)) or 'nothing'}", expected, "digests")


def _kind(kind: str, files: Files) -> Iterator[Finding]:
    """Check every version of one kind against its file, and every step against its converters."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", kind) is None or KINDS[kind] != kind.replace("-", "_"):
        yield Finding(
            kind, "", f"declared by {KINDS[kind]}", "a kebab-case name, declared by the module of that stem", "name"
        )
    versions = versions_of(kind)
    if sorted(versions) != list(range(1, len(versions) + 1)):
        yield Finding(kind, "versions", str(sorted(versions)), "1, 2, 3 and so on without a gap", "removed")
    release = releases()[-1]
    wanted = release.kinds.get(kind)
    gone = wanted is None and any(kind in each.kinds for each in releases())
    if versions and wanted != max(versions) and not gone:
        yield _wrong(release, f"kinds.{kind}", str(wanted), f"{max(versions)}, the newest declared", "unlisted")
    for schema in versions.values():
        yield from _version(schema, files)
    for version in sorted(versions):
        if version + 1 in versions:
            yield from _step(versions[version], versions[version + 1])


def _version(schema: Schema, files: Files) -> Iterator[Finding]:
    name = f"{schema.kind}/{schema.version}"
    try:
        longest = max_encoded_len(shape_of(schema.type))
    except InternalError as error:
        yield Finding(name, "", str(error), "bounded", "unbounded")
        return
    if longest > schema.max_len:
        yield Finding(name, "max_len", str(schema.max_len), f"at least {longest}, its longest encoding", "unbounded")
    content = files.get(name)
    released = next(
        (each for each in releases() if each.released and each.kinds.get(schema.kind) == schema.version), None
    )
    if content is None:
        wanted = "run `make schemas`" if released is None else TAKE_BACK
        yield Finding(f"schemas/{name}.json", "", "missing", f"there: {wanted}", "missing")
    elif released is None:
        if content != render(schema):
            yield Finding(
                f"schemas/{name}.json", "", "stale", "what the declaration gives: run `make schemas`", "stale"
            )
    else:
        for change in compare(parse_schema(content), describe(schema)):
            yield Finding(name, change.path, change.said, f"{NEW_VERSION} (release {released.release})", change.what)


def _step(older: Schema, newer: Schema) -> Iterator[Finding]:
    """Check one version step: a converter each way, and every changed field named by both, with the reason."""
    kind = older.kind
    machine = _machine_steps_of(older, newer)
    steps = {(step.from_version, step.to_version): step.changes for step in kind_steps(kind)}
    changed = compare(describe(older), describe(newer))
    places = _places(older) | _places(newer)
    for number, (start, end) in enumerate(((older.version, newer.version), (newer.version, older.version))):
        what = f"converter from version {start} to {end}"
        own = steps.get((start, end))
        if own is None and not machine:
            yield Finding(kind, f"versions[{newer.version}]", "declared alone", f"declared with a {what}", "converter")
            continue
        named = {*(own or {}), *(_paths_of(kind, machine[number].changes) if machine else ())}
        for path in own or {}:
            if path not in places:
                yield Finding(f"{kind} {what}", path, "named", "a field of one of the two versions", "unknown")
        for change in changed:
            if not names(named, change):
                expected = f"named in the changes of the {what}, with the reason"
                yield Finding(f"{kind}/{newer.version}", change.path, change.said, expected, "unexplained")


def _places(schema: Schema) -> set[str]:
    return {path for path, _ in walk(shape_of(schema.type))} - {""}


def _paths_of(kind: str, changes: Mapping[str, str]) -> set[str]:
    """Return the field paths of *kind* among those that a machine converter names."""
    return {path.partition(".")[2] for path in changes if path.partition(".")[0] == kind}


def _machine_steps_of(older: Schema, newer: Schema) -> list[MachineStep]:
    """Return the two machine converters that take *older* to *newer* and back, if both are there."""
    for before, after in neighbours():
        if before.kinds.get(older.kind) == older.version and after.kinds.get(newer.kind) == newer.version:
            both = (machine_step(before.release, after.release), machine_step(after.release, before.release))
            covering = [step for step in both if step is not None and older.kind in step.kinds]
            return covering if len(covering) == 2 else []
    return []


def _machine_converters() -> Iterator[Finding]:
    """Check that machine converters join neighbours, come in pairs, and say what they do to what."""
    up = {(before.release, after.release) for before, after in neighbours()}
    joined = up | {(after, before) for before, after in up}
    for step in machine_steps():
        where = f"machine converter {step.from_release} to {step.to_release}"
        if (step.from_release, step.to_release) not in joined:
            yield Finding(where, "", "there", "between two neighbouring releases", "converter")
            continue
        if machine_step(step.to_release, step.from_release) is None:
            expected = f"paired with one from release {step.to_release} to {step.from_release}"
            yield Finding(where, "", "alone", expected, "converter")
        places = _places_of_releases(step)
        for kind in sorted(step.kinds - places.keys()):
            yield Finding(where, f"kinds.{kind}", "there", "a kind of one of the two releases", "unknown")
        for kind in sorted((step.kinds & places.keys()) - {path.partition(".")[0] for path in step.changes}):
            yield Finding(where, f"changes.{kind}", "absent", "what it does to this kind, and why", "unexplained")
        for path in step.changes:
            kind, _, field = path.partition(".")
            if kind not in step.kinds or (field and field not in places.get(kind, {field})):
                yield Finding(where, f"changes.{path}", "named", "a field of one of its kinds", "unknown")


def _places_of_releases(step: MachineStep) -> dict[str, set[str]]:
    """Return every field path of every kind that either release of a machine converter writes."""
    places: dict[str, set[str]] = {}
    for each in releases():
        if each.release in {step.from_release, step.to_release}:
            for kind, version in each.kinds.items():
                schema = versions_of(kind).get(version) if kind in KINDS else None
                places.setdefault(kind, set()).update(_places(schema) if schema else ())
    return places


def _converted_by_machine(older: Release, newer: Release) -> frozenset[str]:
    step = machine_step(older.release, newer.release)
    return frozenset() if step is None else step.kinds


def _wrong(release: Release, path: str, value: str, expected: str, rule: str) -> Finding:
    return Finding(f"releases.json/{release.release}", path, value, expected, rule)


def parse_schema(content: bytes) -> dict[str, Any]:
    """Read the content of a schema file; one that is not JSON reads as a schema without a field."""
    try:
        parsed: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"type": "object", "properties": {}, "x-order": []}
    return parsed
