"""The machine converters between neighbouring releases, in order of release.

Each maps the whole set of sections one release up or down; `snapkit.state.converters` says what they must keep to and
when a kind converter, beside its kind, is enough. Release 0.1.0 is the first, so there is none yet.
"""
