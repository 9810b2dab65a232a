"""Files and folders that only their owner can read: how they are created, and how existing ones are closed."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from sync_orchestrator.errors import ConfigError

OPEN_BITS = stat.S_IRWXG | stat.S_IRWXO
"""The rights of everybody but the owner."""


def make_private_folder(folder: Path) -> None:
    """Creates a folder that only its owner can enter, or closes an existing one to others.

    Args:
        folder: Its missing parents are created with the usual rights.

    Raises:
        ConfigError: The path is no folder, is a symbolic link, or belongs to another user.
    """
    _make_folder(folder)
    if os.name != "posix":
        return  # a profile folder of Windows is private by its inherited rights
    require_own_folder(folder, os.geteuid())
    _remove_open_permissions(folder)


def make_private_home(folder: Path) -> None:
    """Creates the folder of all local data (``SYNC_HOME``), or closes an existing one to others.

    A folder that serves other purposes too keeps its mode: one of another user, one that holds files of other users,
    and one that contains the working directory, the user's home or Python itself. The folders that this program
    creates in it are private in any case.

    Raises:
        ConfigError: Other users can replace files in the folder.
    """
    _make_folder(folder)
    if os.name != "posix":
        return
    found = folder.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX and not has_other_purposes(folder):
        _remove_open_permissions(folder)
    if folder.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"all users can write to {folder}, and could put their files in place of ours: "
            f"set SYNC_HOME to a folder of its own, for example {folder / 'sync'}"
        )


def require_own_folder(folder: Path, uid: int) -> None:
    """Checks that a path is a real folder and belongs to a user.

    Raises:
        ConfigError: It is a symbolic link or no folder, or belongs to another user.
    """
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{folder} is a symbolic link, which another user may have made: replace it by a folder")
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder} is not a folder: move it away")
    if found.st_uid != uid:
        raise ConfigError(
            f"{folder} belongs to another user (uid {found.st_uid} instead of {uid}): remove it, or set "
            "SYNC_HOME to a folder of your own"
        )


def close_tree(folder: Path) -> None:
    """Takes the rights of others away from everything in a folder that belongs to this user, and from the folder.

    Symbolic links are not followed. A missing folder is ignored.
    """
    if os.name != "posix":
        return
    with suppress(FileNotFoundError):
        _remove_open_permissions(folder)
        for place, folders, files in os.walk(folder):
            for name in (*folders, *files):
                with suppress(FileNotFoundError):  # programs that run remove files of theirs
                    _remove_open_permissions(Path(place, name))


def write_private_file(file: Path, text: str) -> None:
    """Replaces a file by one with a new content that only its owner can read; readers see the old or the new one.

    Raises:
        OSError: The file cannot be written.
    """
    handle, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # with mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def _remove_open_permissions(path: Path) -> None:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.geteuid():
        return
    mode = stat.S_IMODE(found.st_mode)
    kept = mode & ~OPEN_BITS
    if found.st_gid != os.getegid() and stat.S_ISDIR(found.st_mode):
        kept |= mode & stat.S_IXGRP  # the group that the embedded database runs in, see database/server_user.py
    if kept != mode:
        os.chmod(path, kept)


def has_other_purposes(folder: Path) -> bool:
    """Whether a folder holds files of other users, the working directory, the user's home or Python itself."""
    for place in (Path.cwd(), Path(os.path.expanduser("~")), Path(sys.prefix), Path(tempfile.gettempdir())):
        if place.resolve().is_relative_to(folder.resolve()):
            return True
    known = {os.geteuid(), *_uids_of_servers()}
    with os.scandir(folder) as entries:
        return any(entry.stat(follow_symlinks=False).st_uid not in known for entry in entries)


def _uids_of_servers() -> set[int]:
    """As root the embedded database runs as another user, who owns its folder."""
    import pwd

    with suppress(KeyError):
        return {pwd.getpwnam(SERVER_USER).pw_uid}
    return set()


SERVER_USER = "pgserver"
"""The user that runs the embedded database where root starts it."""
