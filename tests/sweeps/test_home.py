import subprocess
import sys
from pathlib import Path

import pytest

from search_space.errors import UsageError
from sweeps.home import Home

HOLD = """
import sys, time
from pathlib import Path
from sweeps.home import Home
with Home(Path(sys.argv[1])).sweep("s").locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_driver_at_a_time_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    sweep = Home(tmp_path).sweep("s")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert sweep.driver() == holder.pid
    with pytest.raises(UsageError, match=f"already run by process {holder.pid}"), sweep.locked():
        pass
    holder.kill()
    holder.wait()
    assert sweep.driver() is None
    with sweep.locked():
        assert sweep.driver() is not None
    assert sweep.driver() is None


def test_unknown_sweep_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none yet"):
        Home(tmp_path).existing("x")
    (tmp_path / "known").mkdir()
    (tmp_path / "known" / "sweep.yaml").write_text("name: known")
    with pytest.raises(UsageError, match="known"):
        Home(tmp_path).existing("x")
