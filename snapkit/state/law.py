"""The law of ``schemas/README.md``, checked: what may change between two releases and what must come with it.

`violations` looks at every version of every kind that is declared, at the schema files, at the list of releases and at
the converters, and reports all that is wrong at once. It is static: no State is converted here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from snapkit.errors import Finding, InternalError
from snapkit.state.changes import Change, compare
from snapkit.state.converters import kind_steps, machine_step, machine_steps
from snapkit.state.describe import describe, render
from snapkit.state.releases import Release, digest, neighbours, releases, schema_file
from snapkit.state.schema import KINDS, Schema, versions_of
from snapkit.state.shape import max_encoded_len, shape_of

Files = Mapping[str, bytes]
"""Content of schema files by ``kind/version``."""
STAMP_MAX = 16
NEW_VERSION = "as released: declare the next version, with both converters"


def committed_files() -> dict[str, bytes]:
    """Return the schema files of this installation that a declaration or a release asks for."""
    names = {f"{kind}/{version}" for kind in KINDS for version in versions_of(kind)}
    names |= {f"{kind}/{version}" for each in releases() for kind, version in each.kinds.items()}
    found = {name: schema_file(f"{name}.json") for name in sorted(names)}
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
    for each in every[:-1]:
        if each.released is None:
            yield _wrong(each, "released", "null", "a date: only the newest release may be open", "open")
    for older, newer in neighbours():
        for kind, version in older.kinds.items():
            now = newer.kinds.get(kind)
            if now is None and kind not in _converted_by_machine(older, newer):
                yield _wrong(
                    newer, f"kinds.{kind}", "absent", f"there, as release {older.release} writes it", "removed"
                )
            elif now is not None and now not in {version, version + 1}:
                yield _wrong(newer, f"kinds.{kind}", str(now), f"{version} or {version + 1}", "skipped")
    for each in every:
        if len(each.written_as) > STAMP_MAX:
            expected = f"a name of at most {STAMP_MAX} characters, which a preamble has room for"
            yield _wrong(each, "stamp", repr(each.written_as), expected, "stamp")
        yield from _release(each, files)


def _release(each: Release, files: Files) -> Iterator[Finding]:
    names = {f"{kind}/{version}" for kind, version in each.kinds.items()}
    for kind, version in each.kinds.items():
        if kind not in KINDS or version not in versions_of(kind):
            yield _wrong(
                each, f"kinds.{kind}", str(version), "declared: what was written once stays readable", "removed"
            )
    if each.released is None:
        if each.digests:
            yield _wrong(each, "digests", "there", "empty until it is released", "open")
        return
    if names != set(each.digests):
        expected = f"one for each of {', '.join(sorted(names))}"
        yield _wrong(each, "digests", f"for {', '.join(sorted(each.digests)) or 'nothing'}", expected, "digests")
    for name, wanted in each.digests.items():
        if name in files and digest(files[name]) != wanted:
            expected = f"the file that release {each.release} froze, with SHA-256 {wanted}"
            yield Finding(f"schemas/{name}.json", "", f"edited (SHA-256 {digest(files[name])})", expected, "edited")


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
        yield Finding(f"schemas/{name}.json", "", "missing", "there: run `make schemas`", "missing")
    elif released is None:
        if content != render(schema):
            yield Finding(
                f"schemas/{name}.json", "", "stale", "what the declaration gives: run `make schemas`", "stale"
            )
    else:
        for change in compare(parse_schema(content), describe(schema)):
            yield Finding(
                name, change.path, _as_value(change), f"{NEW_VERSION} (release {released.release})", change.what
            )


def _step(older: Schema, newer: Schema) -> Iterator[Finding]:
    """Check one version step: both converters, and every changed field named by the upgrade."""
    kind = older.kind
    named: list[Mapping[str, str]] = []
    machine = _machine_steps_of(older, newer)
    steps = {(step.from_version, step.to_version): step.changes for step in kind_steps(kind)}
    for start, end in ((older.version, newer.version), (newer.version, older.version)):
        changes = steps.get((start, end))
        if changes is None and not machine:
            expected = f"a converter from version {start} to {end}"
            yield Finding(
                kind, f"versions[{newer.version}]", "declared alone", f"declared with {expected}", "converter"
            )
        elif changes is not None:
            named.append(changes)
    prefix = f"{kind}."
    named += [
        {path.removeprefix(prefix): why for path, why in step.items() if path.startswith(prefix)} for step in machine
    ]
    if not named:
        return
    for change in compare(describe(older), describe(newer)):
        if change.path and not any(_covers(path, change.path) for changes in named for path in changes):
            expected = "named in the changes of a converter, with the reason"
            yield Finding(f"{kind}/{newer.version}", change.path, _as_value(change), expected, "unexplained")


def _covers(named: str, path: str) -> bool:
    return path == named or path.startswith((f"{named}.", f"{named}["))


def _machine_steps_of(older: Schema, newer: Schema) -> list[Mapping[str, str]]:
    """Return the changes of the two machine converters that take *older* to *newer* and back, if both are there."""
    for before, after in neighbours():
        if before.kinds.get(older.kind) == older.version and after.kinds.get(newer.kind) == newer.version:
            both = (machine_step(before.release, after.release), machine_step(after.release, before.release))
            covering = [step.changes for step in both if step is not None and older.kind in step.kinds]
            return covering if len(covering) == 2 else []
    return []


def _machine_converters() -> Iterator[Finding]:
    """Check that machine converters join neighbours, and come in pairs."""
    up = {(before.release, after.release) for before, after in neighbours()}
    joined = up | {(after, before) for before, after in up}
    for step in machine_steps():
        where = f"machine converter {step.from_release} to {step.to_release}"
        if (step.from_release, step.to_release) not in joined:
            yield Finding(where, "", "there", "between two neighbouring releases", "converter")
        elif machine_step(step.to_release, step.from_release) is None:
            yield Finding(where, "", "alone", "paired with the one the other way", "converter")


def _converted_by_machine(older: Release, newer: Release) -> frozenset[str]:
    step = machine_step(older.release, newer.release)
    return frozenset() if step is None else step.kinds


def _as_value(change: Change) -> str:
    return str(change).removeprefix(change.path or "the section").removeprefix(" is ")


def _wrong(release: Release, path: str, value: str, expected: str, rule: str) -> Finding:
    return Finding(f"releases.json/{release.release}", path, value, expected, rule)


def parse_schema(content: bytes) -> dict[str, Any]:
    """Read the content of a schema file; one that is not JSON reads as a schema without a field."""
    try:
        parsed: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"type": "object", "properties": {}, "x-order": []}
    return parsed
