"""From the file to the configuration, or to all that is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml
from pydantic import ValidationError

from sync_orchestrator.config.document import Config
from sync_orchestrator.config.environment import Place, filled_in, find_unset_variables, without_values
from sync_orchestrator.config.issues import Complaint, format_place, list_complaints, make_complaint
from sync_orchestrator.config.positions import walk_scalars, written_twice
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.texts.masking import mask_log_records

Further = Callable[[Config], Iterable[tuple[Place, str]]]
"""What else is looked at in a configuration that is in order by itself: places, and what has to be fixed there."""


_MARK = re.compile(r"(?<!\S)# TODO: (.*)$")
_TRUTH = "tag:yaml.org,2002:bool"


class Yaml(yaml.SafeLoader):
    """YAML in which ``off``, ``on``, ``no`` and ``yes`` are words, as in YAML 1.2: settings and keys are called so."""


Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TRUTH]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver(_TRUTH, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def nothing_further(config: Config) -> tuple[()]:
    """The document alone is looked at."""
    return ()


def load(path: Path, further: Further = nothing_further) -> Config:
    """Reads and checks a configuration.

    Raises ConfigError with all that is wrong, a line each: file, line, field and hint.
    """
    mask_log_records()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{_shorten_path(path)}: {error.strerror}. Write one with `sync-orchestrator init`, or name another "
            "with SYNC_CONFIG."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{_shorten_path(path)}: is not UTF-8; save it so.") from None
    return parse_config(text, _shorten_path(path), further)


def parse_config(text: str, name: str, further: Further = nothing_further) -> Config:
    """Checks the text of a configuration; ``name`` stands for the file in what is said of it.

    Raises ConfigError as ``load`` does.
    """
    try:
        tree, document = yaml.compose(text, Loader=Yaml), yaml.load(text, Loader=Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(document, dict) or tree is None:
        raise ConfigError(f"{name}: expected sources, third_parties and entities at the top.")
    config, wrong = _check_document(document, tree)
    wrong = _with_marks(wrong, list(_find_todo_marks(text, tree)))
    if config is not None and not wrong:
        wrong = sorted({make_complaint(tree, place, hint) for place, hint in further(config)})
    if wrong or config is None:
        raise ConfigError("\n".join(without_values(f"{name}:{each}", text) for each in wrong))
    return config


def _check_document(document: dict[str, object], tree: yaml.Node) -> tuple[Config | None, list[Complaint]]:
    wrong = [
        Complaint(line, format_place(place), f"is written twice; the first is on line {first}")
        for place, line, first in written_twice(tree)
    ]
    absent = [
        make_complaint(tree, place, f"the environment has no {name}; set it, or write ${{{name}:-default}}")
        for place, name in find_unset_variables(document)
    ]
    config = None
    try:
        config = Config.model_validate(filled_in(document))
    except ValidationError as error:
        found = list_complaints(error, tree, Config.model_json_schema())
        # What is not set cannot fit: one complaint is enough.
        wrong += [each for each in found if not any((each.line, each.field) == (one.line, one.field) for one in absent)]
    return config, sorted(wrong + absent)


def _find_todo_marks(text: str, tree: yaml.Node) -> Iterator[Complaint]:
    """What ``init`` could not know: the word TODO, as a name or a value, where a comment with that word explains it."""
    lines = text.splitlines()
    for place, word, line in walk_scalars(tree):
        if word == "TODO" and (mark := _MARK.search(lines[line - 1])) is not None:
            yield Complaint(line, format_place(place), f"is to be filled in: {mark[1].strip()}")


def _with_marks(wrong: list[Complaint], marks: list[Complaint]) -> list[Complaint]:
    """Without what else is wrong with a marked place: one complaint is enough."""

    def is_marked(each: Complaint) -> bool:
        return any(each.line == mark.line or f"{each.field}.".startswith(f"{mark.field}.") for mark in marks)

    return sorted(marks + [each for each in wrong if not is_marked(each)])


def _shorten_path(path: Path) -> str:
    """Short where it is near."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
