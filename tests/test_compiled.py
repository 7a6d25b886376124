"""Compiled networks and batches, on machines that have a compiler or not."""

import os
import subprocess
import sys

import pytest
import torch
from tapes import Called, make, trained

from rmlib import UserError, mixers, recorded


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A machine that seems to have one."""
    monkeypatch.setattr(recorded.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def test_a_compiled_step_trains_the_same_network(compiler, monkeypatch):
    """As torch.compile captures it, forward and backward; its code generation, half a minute on the
    CPU, is left out (`rmlib bench --compile` uses it).
    """
    monkeypatch.setattr(mixers, "_on_host", lambda boxes: False)
    compiled = []

    def capture(function):
        compiled.append(function)
        return torch.compile(function, backend="aot_eager", dynamic=False)

    monkeypatch.setattr(recorded, "compile_whole", capture)
    changes = {"mixer": "region_mixup"}
    found = trained(make(changes | {"compiled": True}), Called)
    for mine, theirs in zip(found, trained(make(changes), Called), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 2, "the batch and the network"


def test_on_the_cpu_the_network_alone_is_compiled(compiler, monkeypatch):
    compiled = []
    monkeypatch.setattr(recorded, "compile_whole", lambda function: compiled.append(function))
    run = make({"compiled": True})
    assert recorded.recording_of(run) is None and compiled == [run.model]
    assert recorded.recording_of(make({})) is None and len(compiled) == 1


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(recorded.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compiled=True needs a C.* compiler.*or leave it out"):
        recorded.recording_of(make({"compiled": True}))


def test_what_is_compiled_lies_in_the_cache_of_the_project(compiler, tmp_path, monkeypatch):
    """torch sets that folder itself as soon as an optimiser is made; the user's own choice stays,
    and an import sets nothing.
    """
    monkeypatch.setattr(recorded, "compile_whole", lambda function: function)
    recorded.recording_of(make({"compiled": True}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    monkeypatch.setenv("RMLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    torch.optim.SGD([torch.zeros(1)])
    recorded.recording_of(make({"compiled": True}))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    code = (
        "import os; before = dict(os.environ); import rmlib.recorded; assert before == os.environ"
    )
    environment = {name: value for name, value in os.environ.items() if "INDUCTOR" not in name}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
