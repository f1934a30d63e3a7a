"""The environment of a run: quiet and sound by default, the user's settings kept, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import pytest

from flows.environment import SERVE, SERVER, STARTED_BY, reap_orphans
from tests.flows.conftest import REPOSITORY, clean_environment, wait_for

PREPARE = "from pathlib import Path; from flows.environment import {name}; {name}(Path({root!r}))\n"
SLEEP = "import time; time.sleep(60)"
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').write('saved'), sys.exit()))
print('up', flush=True)
time.sleep(60)
"""

# a flow as a user's `unclip run` has it, with a child that says its number and saves when it is asked to stop
FLOW = """
import sys
from prefect import flow
from flows.process import run_child

CHILD = '''
import os, signal, sys, time
save = lambda number, frame: (open(sys.argv[1], "w").write("saved"), sys.exit(143))
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
print("child", os.getpid(), flush=True)
time.sleep(float(sys.argv[2]))
'''

@flow
def hold(saved: str, seconds: float) -> None:
    run_child([sys.executable, "-c", CHILD, saved, str(seconds)], name="prior", say=lambda line: print(line, flush=True))

hold(sys.argv[1], float(sys.argv[2]))
print("ended well")
"""


STRANGER = """
import httpx
from prefect.server.api.server import SubprocessASGIServer
print(httpx.get(SubprocessASGIServer().api_url + "/admin/settings").status_code)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME whose database is made once."""
    return tmp_path_factory.mktemp("home")


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, env=clean_environment(**environment), capture_output=True, text=True, timeout=120, check=False
    )


def servers(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if SERVER in process.cmdline() and process.environ().get("PREFECT_HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_package_alone_imports_no_prefect() -> None:
    assert run("import sys, flows, flows.environment, flows.process; sys.exit('prefect' in sys.modules)").returncode == 0


def test_what_the_user_set_stays_and_the_rest_is_quiet(tmp_path: Path) -> None:
    names = ["PREFECT_HOME", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_LOGGING_LEVEL"]
    show = f"import os; print(*(os.environ[name] for name in {names}))"
    shown = run(PREPARE.format(name="set_environment", root=str(tmp_path)) + show, PREFECT_LOGGING_LEVEL="DEBUG").stdout.split()
    assert shown == [
        f"{tmp_path}/.prefect",
        "1",
        "false",
        "DEBUG",
    ]


def test_the_temporary_server_and_its_run_have_one_password(tmp_path: Path) -> None:
    program = (
        PREPARE.format(name="set_environment", root=str(tmp_path))
        + "import os; print(*(os.environ[f'PREFECT_{who}API_AUTH_STRING'] for who in ('', 'SERVER_')))"
    )
    first, second = (run(program).stdout.split() for _ in range(2))
    assert first[0] == first[1] != second[0]
    assert run(program, PREFECT_API_AUTH_STRING="left:over").stdout.split() == ["left:over"] * 2


def test_a_real_server_keeps_prefects_own_log(tmp_path: Path) -> None:
    show = "import os; print('PREFECT_LOGGING_LEVEL' in os.environ)"
    assert run(PREPARE.format(name="set_environment", root=str(tmp_path)) + show, PREFECT_API_URL="http://127.0.0.1:4200/api").stdout.strip() == "False"


def test_a_flow_runs_on_a_temporary_server_beside_the_dataclasses_backport(home: Path, tmp_path: Path) -> None:
    try:
        assert version("dataclasses") == "0.6"
    except PackageNotFoundError:
        pytest.fail(
            "the `dataclasses` backport is not installed, so this test shows nothing: does img2dataset no longer bring it? Then remove the .pth file too"
        )
    ended = run(PREPARE.format(name="prepare", root=str(tmp_path)) + FLOW + STRANGER, str(tmp_path / "saved"), "0", PREFECT_HOME=str(home))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-2:] == ["ended well", "401"], "the server has a password"
    assert ended.stderr == "", "Prefect's log belongs to its server, not to the terminal"
    assert servers(home) == []


@pytest.mark.parametrize(("number", "to_group", "code"), [(signal.SIGINT, True, -signal.SIGINT), (signal.SIGTERM, False, 128 + signal.SIGTERM)])
def test_a_stop_lets_the_child_save_and_leaves_no_process_behind(number: int, to_group: bool, code: int, home: Path, tmp_path: Path) -> None:
    program = PREPARE.format(name="prepare", root=str(tmp_path)) + FLOW
    command, environment = [sys.executable, "-c", program, str(tmp_path / "saved"), "60"], clean_environment(PREFECT_HOME=str(home))
    flow = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert flow.stdout is not None
    child = int(flow.stdout.readline().split()[1])
    assert len(servers(home)) == 1
    if to_group:
        os.killpg(flow.pid, number)  # as Ctrl-C on a terminal
    else:
        flow.send_signal(number)
    flow.communicate(timeout=30)
    assert flow.returncode == code
    assert (tmp_path / "saved").read_text() == "saved"
    assert not psutil.pid_exists(child)
    wait_for("the server's end", lambda: servers(home) == [], 10)


def server_of(owner: int, home: Path) -> "subprocess.Popen[bytes]":
    """A process that looks like the temporary server of a run."""
    return subprocess.Popen([sys.executable, "-c", SLEEP, SERVER], env=os.environ | {"PREFECT_HOME": str(home), STARTED_BY: str(owner)})


def test_only_the_servers_of_dead_runs_on_the_same_home_are_reaped(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    orphan, elsewhere, owned = server_of(dead.pid, tmp_path), server_of(dead.pid, tmp_path / "other"), server_of(os.getpid(), tmp_path)
    try:
        wait_for("the three to be there", lambda: len([p for p in (orphan, elsewhere, owned) if SERVER in psutil.Process(p.pid).cmdline()]) == 3, 10)
        assert reap_orphans(tmp_path) == [orphan.pid]
        assert not psutil.pid_exists(orphan.pid)
        assert elsewhere.poll() is None
        assert owned.poll() is None
    finally:
        for process in (orphan, elsewhere, owned):
            process.kill()
            process.wait()


def test_a_process_number_that_was_given_again_is_no_owner(tmp_path: Path) -> None:
    program = f'read owner; export {STARTED_BY}=$owner; exec "$@"'  # the owner is named once it is there, which is later
    command = ["sh", "-c", program, "sh", sys.executable, "-c", SLEEP, SERVER]
    orphan = subprocess.Popen(command, env=os.environ | {"PREFECT_HOME": str(tmp_path)}, stdin=subprocess.PIPE)
    time.sleep(0.1)  # processes know their birth to a hundredth of a second
    young = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        assert orphan.stdin is not None
        orphan.stdin.write(f"{young.pid}\n".encode())
        orphan.stdin.close()
        wait_for("it to be there", lambda: psutil.Process(orphan.pid).environ().get(STARTED_BY) == str(young.pid), 10)
        assert reap_orphans(tmp_path) == [orphan.pid]
        assert young.poll() is None
    finally:
        for process in (orphan, young):
            process.kill()
            process.wait()


def test_the_work_of_a_dead_owner_is_asked_to_save_before_its_server_ends(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), STARTED_BY: str(dead.pid)}
    stage = subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path / "state"), "-m", "unclip"], env=environment, stdout=subprocess.PIPE)
    server = subprocess.Popen([sys.executable, "-c", SLEEP, *SERVE], env=environment)
    unrelated = subprocess.Popen([sys.executable, "-c", SLEEP], env=environment)
    try:
        assert stage.stdout is not None
        stage.stdout.readline()
        assert reap_orphans(tmp_path) == [stage.pid, server.pid]
        assert (tmp_path / "state").read_text() == "saved"
        assert unrelated.poll() is None
    finally:
        for process in (stage, server, unrelated):
            process.kill()
            process.wait()
