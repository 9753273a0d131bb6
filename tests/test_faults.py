"""Nothing is lost to a process that is killed, nor to a disk that refuses, at whichever operation."""

import shutil
import subprocess
import sys

import pytest

from tests.faults import HERE, build, preloaded


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="the library to be preloaded is for Linux")
def test_no_trial_of_a_spread_over_all_operations_and_faults_loses_anything(tmp_path):
    command = [sys.executable, str(HERE / "faults.py"), "--every", "23"]
    tried = subprocess.run(command, env=preloaded(build(tmp_path)), capture_output=True, text=True, check=False)
    print(tried.stdout)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "lost 0" in tried.stdout
