"""Claims: numbers that processes share out, and that those of a dead one fall back."""

import subprocess
import sys
from pathlib import Path

from unclip.files import Claims

TAKES = """
import sys
from pathlib import Path
from unclip.files import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take(3), flush=True)
sys.stdin.read()
"""


def test_a_number_is_one_process_s_until_it_ends_or_gives_it_back(tmp_path: Path) -> None:
    mine = Claims(tmp_path / "claims")
    assert mine.take(1)
    other = subprocess.Popen([sys.executable, "-c", TAKES, str(tmp_path / "claims")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    assert not mine.take(3)
    assert mine.take(2)
    other.kill()
    other.wait()
    assert mine.take(3)
    mine.give_back(3)
    again = subprocess.run([sys.executable, "-c", TAKES, str(tmp_path / "claims")], input="", capture_output=True, text=True, check=True)
    assert again.stdout == "True\n"
