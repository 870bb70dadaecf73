"""Commands in processes of their own; most need no KVM."""

from tests.kvm.conftest import tmp_path

__all__ = ["tmp_path"]
