"""Deaths of a process at a chosen moment, for tests of what goes on afterwards."""

from __future__ import annotations


class Kill(BaseException):
    """Stands for a death of the process: nothing catches it by accident."""


def die_at(monkeypatch, owner, name, count, after=False):
    """The ``count``-th call of ``owner.name`` kills; with ``after`` when it has done its work."""
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count and not after:
            raise Kill
        result = original(*args, **kwargs)
        if calls[0] == count:
            raise Kill
        return result

    monkeypatch.setattr(owner, name, counted)
