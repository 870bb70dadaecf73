"""What a snapshot file says about itself, for people: preamble and manifest only, nothing decoded, nothing imported.

A file that cannot be used may still be described: one whose digests need a key that is not there, one that a newer
release wrote, one with sections of unknown kinds. Each of these is a remark here and an error in `Image.open`. What is
plainly damaged is refused here as well.
"""

from collections.abc import Mapping

import msgspec

from snapkit.errors import ImageError
from snapkit.restore.container import find_gaps, parts_of, read_manifest
from snapkit.restore.digest import BLAKE3, Digester
from snapkit.restore.manifest import Manifest
from snapkit.restore.preamble import CONTAINER_VERSION, PREAMBLE_LEN, Identity, Preamble, read_identity, unpack_preamble
from snapkit.restore.source import Source, naming
from snapkit.state.releases import find_release
from snapkit.state.schema import KINDS


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says. *preamble* and *manifest* are None where they cannot be read; *remarks* say why."""

    path: str
    length: int
    identity: Identity
    preamble: Preamble | None
    manifest: Manifest | None
    authenticated: bool
    """Whether the digests of preamble and manifest were checked."""
    remarks: tuple[str, ...]


def describe(path: str, *, key: bytes | None = None, versions: Mapping[str, int] | None = None) -> Description:
    """Describe the snapshot at *path*, whatever release wrote it.

    *versions* gives the newest version that is known of each kind, so that newer sections can be remarked on. Raises
    ConfigError when there is no such file, ImageError when it is no snapshot, or a damaged one.
    """
    with Source(path) as source, naming(path):
        identity = read_identity(source.head)
        remarks: list[str] = []
        preamble: Preamble | None = None
        manifest: Manifest | None = None
        digester = _digester_for(identity, key, remarks)
        if identity.container_version > CONTAINER_VERSION:
            remarks.append(
                f"written by a newer release ({identity.release}): container version {identity.container_version}, "
                f"this release reads {CONTAINER_VERSION}"
            )
            digester = None
        else:
            preamble = unpack_preamble(source.head[:PREAMBLE_LEN], digester)
            if find_release(identity.release) is None:
                remarks.append(f"written by release {identity.release}, which this one does not know")
            try:
                manifest = read_manifest(source, preamble, digester)
            except ImageError as error:
                if digester is not None and not error.args[0].startswith("the manifest cannot be read"):
                    raise
                remarks.append(str(error))
        if digester is None:
            remarks.append("not authenticated")
        if preamble is not None and manifest is not None:
            remarks += _remark_on(preamble, manifest, source.length, versions or {})
        return Description(
            path=path,
            length=source.length,
            identity=identity,
            preamble=preamble,
            manifest=manifest,
            authenticated=digester is not None,
            remarks=tuple(remarks),
        )


def _digester_for(identity: Identity, key: bytes | None, remarks: list[str]) -> Digester | None:
    """Return what checks this file's digests, or None with the reason in *remarks*."""
    if identity.digest_algorithm == BLAKE3:
        if key is not None:
            remarks.append("a key was given, but the digests are not keyed")
        return Digester()
    if key is None:
        remarks.append("its digests are keyed and no key was given")
        return None
    return Digester(key)


def _remark_on(preamble: Preamble, manifest: Manifest, length: int, versions: Mapping[str, int]) -> list[str]:
    remarks: list[str] = []
    for entry in manifest.sections:
        need = "required" if entry.required else "optional"
        if entry.kind not in KINDS:
            remarks.append(f"section {entry.path} is of a kind that this release does not know ({need})")
        elif entry.version > versions.get(entry.kind, entry.version):
            remarks.append(f"section {entry.path} has version {entry.version}, newer than this release knows ({need})")
    try:
        find_gaps(parts_of(preamble, manifest), length)
    except ImageError as error:
        remarks.append(str(error))
    return remarks
