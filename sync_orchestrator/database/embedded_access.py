"""Access to the embedded database: its password, who may connect, and the folder of its socket.

Everything is in a private folder beside the data folder, which only the owner of ``SYNC_HOME`` can read.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from sync_orchestrator.database.server_user import ServerUser
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.private_files import OPEN_BITS, make_private_folder, require_own_folder, write_private_file

SOCKET_NAME = ".s.PGSQL.5432"
MAX_SOCKET_BYTES = 103
"""The longest path of a Unix socket on macOS; Linux allows 107 bytes."""

_PASSWORD_BYTES = 32

# The socket's folder is part of a URL and of a command line of pg_ctl, which a shell reads.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._-]*")

_RULES_HEAD = "# Written by sync-orchestrator at each start; changes are lost.\n"
_LOCAL_RULES = "local all all scram-sha-256\n"
_TCP_RULES = "host all all 127.0.0.1/32 scram-sha-256\nhost all all ::1/128 scram-sha-256\n"


class DatabaseAccess:
    """The password and the socket's place of the server in one data folder."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.folder = data.parent / f"{data.name}.private"
        self._password_file = self.folder / "password"
        self._socket_file = self.folder / "socket-folder"

    def make_folder(self) -> None:
        """Creates the private folder.

        Raises:
            ConfigError: Another user created it first.
        """
        make_private_folder(self.folder)

    def lock_file(self) -> Path:
        """The file whose lock admits one starter or stopper at a time."""
        file = self.folder / "lock"
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        return file

    def read_password(self) -> str | None:
        """The password of the database's superuser; None before it has one."""
        try:
            return self._password_file.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def create_password(self) -> str:
        """Chooses a new password, stores it and returns it."""
        password = secrets.token_hex(_PASSWORD_BYTES)
        write_private_file(self._password_file, password + "\n")
        return password

    def write_rules(self) -> None:
        """Replaces the rules of who may connect (``pg_hba.conf``): everybody needs the password."""
        file = self._data / "pg_hba.conf"
        rules = _RULES_HEAD + (_LOCAL_RULES if os.name == "posix" else _TCP_RULES)
        if file.is_symlink() or not file.is_file() or file.read_text(encoding="utf-8") != rules:
            _replace_file_of_server(file, rules, self._data.stat())

    def write_settings(self, settings: tuple[str, ...]) -> None:
        """Adds settings to ``postgresql.conf`` that are not in it yet."""
        file = self._data / "postgresql.conf"
        text = file.read_text(encoding="utf-8")
        if missing := [setting for setting in settings if setting not in text.splitlines()]:
            _replace_file_of_server(file, text + "\n" + "\n".join(missing) + "\n", self._data.stat())

    def prepare_socket_folder(self, user: ServerUser) -> Path:
        """The folder for the server's socket, which only the server's user can enter (and root, who can enter all).

        It is the data folder, if that is short enough for the path of a socket. Otherwise it is a folder with a random
        name in the user's runtime folder or in the folder for temporary files; its name is remembered until the server
        is stopped.

        Raises:
            ConfigError: Another user owns the remembered folder, or no place is short enough.
        """
        folder = (
            self._data
            if _is_usable_socket_folder(self._data)
            else self._find_remembered_folder(user) or self._make_socket_folder(user)
        )
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):  # a killed server leaves them
            with suppress(FileNotFoundError):
                os.unlink(folder / name)
        return folder

    def remove_socket_folder(self) -> None:
        """Removes the socket's folder of a server that was stopped, unless it is the data folder."""
        folder = self._read_socket_folder()
        if folder is None:
            return
        with suppress(OSError):
            os.rmdir(folder)
        with suppress(OSError):
            self._socket_file.unlink()

    def _read_socket_folder(self) -> Path | None:
        try:
            return Path(self._socket_file.read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            return None

    def _find_remembered_folder(self, user: ServerUser) -> Path | None:
        folder = self._read_socket_folder()
        if folder is None or not os.path.lexists(folder):
            return None
        hint = f"remove {self._socket_file}, and another folder is used"
        try:
            require_own_folder(folder, user.uid)
        except ConfigError as error:
            raise ConfigError(
                f"the folder of the embedded Postgres's socket cannot be used: {error}; or {hint}"
            ) from None
        if os.lstat(folder).st_mode & OPEN_BITS:
            raise ConfigError(f"the folder of the embedded Postgres's socket, {folder}, is open to other users: {hint}")
        return folder if _is_usable_socket_folder(folder) else None

    def _make_socket_folder(self, user: ServerUser) -> Path:
        for parent in _runtime_folders(user):
            if _is_usable_socket_folder(parent / "sync-12345678") and user.can_enter(parent):
                with suppress(OSError):
                    folder = Path(tempfile.mkdtemp(prefix="sync-", dir=parent))  # with mode 0700
                    if user.is_other:
                        os.chown(folder, user.uid, user.gid)
                    write_private_file(self._socket_file, f"{folder}\n")
                    return folder
        raise ConfigError(
            f"the path {self._data} is too long for the socket of the embedded Postgres, and no folder "
            "for temporary files is usable: set SYNC_HOME to a shorter path"
        )


def _runtime_folders(user: ServerUser) -> list[Path]:
    """Folders in which nobody else can replace a folder of this user, best first."""
    folders = []
    if (named := os.environ.get("XDG_RUNTIME_DIR")) and not user.is_other:
        with suppress(OSError):
            found = os.lstat(named)
            if stat.S_ISDIR(found.st_mode) and found.st_uid == user.uid and not found.st_mode & OPEN_BITS:
                folders.append(Path(named))
    for name in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        with suppress(OSError):
            found = os.stat(name)
            shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if found.st_uid in (0, os.geteuid()) and (not shared or found.st_mode & stat.S_ISVTX):
                folders.append(Path(name))
    return folders


def _is_usable_socket_folder(folder: Path) -> bool:
    path = str(folder / SOCKET_NAME)
    return _PLAIN_PATH.fullmatch(path) is not None and len(path) <= MAX_SOCKET_BYTES


def _replace_file_of_server(file: Path, text: str, owner: os.stat_result) -> None:
    """Writes a file of the data folder, and leaves it to the folder's owner.

    The file is replaced rather than opened: under root its folder belongs to another user.
    """
    write_private_file(file, text)
    if os.name == "posix" and owner.st_uid != os.geteuid():
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)
