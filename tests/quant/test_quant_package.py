"""The package is light to import and gives its public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quant


def test_import_loads_nothing_heavy():
    code = (
        "import sys, quant, quant.quantizers; quant.quantizers.names(); dir(quant)\n"
        "print([m for m in ('torch', 'scipy', 'numpy', 'pandas', 'matplotlib', 'timm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_module_loads_pandas_or_timm():
    code = (
        "import sys, quant\n[getattr(quant, n) for n in quant.__all__]\n"
        "print([m for m in ('pandas', 'matplotlib', 'timm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names():
    for name in quant.__all__:
        assert getattr(quant, name).__name__ == name
    assert dir(quant) == sorted(quant.__all__)
    assert quant.QuantError.exit_code == 2
    with pytest.raises(AttributeError, match="no attribute 'Quantiser'"):
        quant.Quantiser  # noqa: B018
