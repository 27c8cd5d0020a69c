"""What a part says of the machine that measured it."""

from __future__ import annotations

import platform

from landscape.shards import _processor, machine


def test_a_machine_is_named_with_its_processor(tmp_path):
    about = tmp_path / "cpuinfo"
    about.write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2.10GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    assert _processor(about) == "Some CPU @ 2.10GHz"
    assert machine() == f"{platform.system()} {platform.machine()} {_processor()}".strip()


def test_a_processor_without_a_model_is_what_python_knows(tmp_path):
    about = tmp_path / "cpuinfo"
    assert _processor(about) == platform.processor()
    about.write_text("processor : 0\nBogoMIPS : 50.00\n")
    assert _processor(about) == platform.processor()
