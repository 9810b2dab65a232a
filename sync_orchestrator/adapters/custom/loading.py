"""Classes of your own that the configuration names: found, looked at before they are used, and made."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from sync_orchestrator.adapters.custom.base import Adapter, Given, SourceAdapter, ThirdPartyAdapter
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import Config, PartSettings, TargetSettings, ThirdPartySettings
from sync_orchestrator.config.environment import FromEnvironment, Place
from sync_orchestrator.config.sources import ClassSourceSettings
from sync_orchestrator.core.ports import Capabilities
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.texts.nearest_names import find_nearest_names

A = TypeVar("A", bound=Adapter)

_COROUTINES = {
    ThirdPartyAdapter: ("create", "update", "delete", "read", "lookup", "count", "close"),
    SourceAdapter: ("read", "read_many", "count", "groups", "close"),
}
_PAGED = {ThirdPartyAdapter: ("pages",), SourceAdapter: ("pages", "changes")}


def wrong_classes(config: Config) -> Iterator[tuple[Place, str]]:
    """All that is wrong with the classes that a configuration names, and with the settings they are given."""
    for name, system in config.third_parties.items():
        if system.adapter is not None:
            places: list[tuple[Place, Mapping[str, object]]] = [
                (("entities", entity, "third_party", "settings"), settings.third_party.settings)
                for entity, settings in config.entities.items()
                if settings.third_party.system == name
            ]
            yield from _find_problems(
                ("third_parties", name), system.adapter, ThirdPartyAdapter, system.settings, places
            )
    for name, source in config.sources.items():
        if isinstance(source, ClassSourceSettings):
            places = [
                (("entities", entity, "parts", name, "settings"), settings.parts[name].settings)
                for entity, settings in config.entities.items()
                if name in settings.parts
            ]
            yield from _find_problems(("sources", name), source.adapter, SourceAdapter, source.settings, places)


def made_third_party(
    name: str,
    system: ThirdPartySettings,
    http: HttpClient | None,
    entity: str,
    target: TargetSettings,
    fields: tuple[str, ...],
) -> ThirdPartyAdapter:
    """One entity's collection at a third party, by its class. Raises ConfigError."""
    assert system.adapter is not None
    place = f"third_parties.{name}.adapter"
    found = _load_class(place, system.adapter, ThirdPartyAdapter)  # type: ignore[type-abstract]  # as a bound
    settings = _build_settings(place, found, {**system.settings, **target.settings})
    made = _build_adapter(place, found, Given(name, entity, settings, http, target.key_field, fields))
    if not isinstance(getattr(made, "capabilities", None), Capabilities):
        raise ConfigError(
            f"{place}: {found.__name__}.capabilities must be Capabilities(...), of sync_orchestrator.core.ports"
        )
    return made


def made_source(
    name: str, system: ClassSourceSettings, http: HttpClient | None, entity: str, part: PartSettings
) -> SourceAdapter:
    """One entity's part in a source system, by its class. Raises ConfigError."""
    place = f"sources.{name}.adapter"
    found = _load_class(place, system.adapter, SourceAdapter)  # type: ignore[type-abstract]  # as a bound
    settings = _build_settings(place, found, {**system.settings, **part.settings})
    return _build_adapter(place, found, Given(name, entity, settings, http, part=part))


def secrets_in(*settings: object) -> list[str]:
    """What must not appear in an error text: values of the environment, and those that a model calls secret."""
    found: list[str] = []
    for value in settings:
        if isinstance(value, FromEnvironment):
            found.append(str(value))
        elif isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += secrets_in(*dict(value).values())
        elif isinstance(value, Mapping):
            found += secrets_in(*value.values())
        elif isinstance(value, list | tuple):
            found += secrets_in(*value)
    return found


def _find_problems(
    system: Place,
    named: str,
    base: type[Adapter],
    settings: Mapping[str, object],
    places: list[tuple[Place, Mapping[str, object]]],
) -> Iterator[tuple[Place, str]]:
    adapter = (*system, "adapter")
    try:
        found = class_of(named, base)
    except ValueError as error:
        yield adapter, str(error)
        return
    for hint in _find_unmet_obligations(found, base):
        yield adapter, hint
    for place, own in places or [((*system, "settings"), {})]:
        for step, hint in _find_wrong_settings(found, {**settings, **own}):
            yield (*(place if step and step[0] in own else (*system, "settings")), *step), hint


def class_of(named: str, base: type[A]) -> type[A]:
    """The class of a name such as ``my_company.erp:Erp``. Raises ValueError, which says what to fix."""
    module_name, _, name = named.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(
                f"there is no module '{error.name}'; put it beside the configuration, install it, or name "
                "its folder in PYTHONPATH"
            ) from None
        raise ValueError(f"the import of {module_name} failed: {error}{locate_error(error)}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"the import of {module_name} failed: {type(error).__name__}: {error}{locate_error(error)}"
        ) from None
    found = getattr(module, name, None)
    if found is None:
        classes = [each for each, value in vars(module).items() if inspect.isclass(value)]
        near = find_nearest_names(name, classes, limit=1)
        raise ValueError(f"{module_name} has no class '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(
            f"'{name}' must be a class that begins with sync_orchestrator.adapters.custom.base."
            f"{base.__name__}: class {name}({base.__name__})"
        )
    return found


def locate_error(error: BaseException, module: str | None = None) -> str:
    """The line that an error came from, in the given file where it came by that; empty where none is known."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if module is not None and frame.filename == module]
    outside = [frame for frame in frames if not frame.filename.startswith("<frozen") and frame.filename != __file__]
    last = next(reversed(own or outside), None)
    return f" ({last.filename.rpartition('/')[2]}, line {last.lineno})" if last else ""


def _find_unmet_obligations(found: type[Adapter], base: type[Adapter]) -> Iterator[str]:
    """What a class lacks, or has in another form than it is used in."""
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        yield f"{found.__name__} has no {', '.join(repr(name) for name in missing)}, which it must have"
    for name in _COROUTINES[base]:
        method = inspect.getattr_static(found, name)
        plain = inspect.isfunction(method) and not hasattr(method, "__wrapped__")
        if plain and not inspect.iscoroutinefunction(method):
            yield f"{found.__name__}.{name} must be 'async def', and return its result"
    for name in _PAGED[base]:
        method = inspect.getattr_static(found, name)
        if inspect.iscoroutinefunction(method):
            yield f"{found.__name__}.{name} must yield pages: 'async def' with 'yield'"
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        yield (
            f"{found.__name__} must be made with one argument: def __init__(self, given: Given), and "
            "super().__init__(given) in it"
        )
    except ValueError:
        pass  # its signature cannot be seen
    if found.Settings is not None and not (inspect.isclass(found.Settings) and issubclass(found.Settings, BaseModel)):
        yield f"{found.__name__}.Settings must be a pydantic model: class Settings(BaseModel)"
    if issubclass(found, ThirdPartyAdapter):
        yield from _untrue_capabilities(found)


def _untrue_capabilities(found: type[ThirdPartyAdapter]) -> Iterator[str]:
    capabilities = inspect.getattr_static(found, "capabilities")
    has_lookup = found.lookup is not ThirdPartyAdapter.lookup
    if not isinstance(capabilities, Capabilities):
        if not isinstance(capabilities, property):
            yield f"{found.__name__}.capabilities must be Capabilities(...), of sync_orchestrator.core.ports"
    elif (capabilities.can_lookup or capabilities.search_first) and not has_lookup:
        yield f"{found.__name__}.capabilities says that it can be searched by key, and there is no 'lookup'"
    elif has_lookup and not capabilities.can_lookup:
        yield f"{found.__name__} has 'lookup', and its capabilities say can_lookup=False"


def _find_wrong_settings(found: type[Adapter], settings: Mapping[str, object]) -> Iterator[tuple[Place, str]]:
    model = found.Settings
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        return
    try:
        model.model_validate(dict(settings))
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            hint = {"missing": "is needed", "extra_forbidden": f"{found.__name__} has no such setting"}.get(
                details["type"], details["msg"].removeprefix("Value error, ").removeprefix("Input ")
            )
            if details["type"] == "extra_forbidden":
                hint += "; known here: " + ", ".join(sorted(model.model_fields))
            yield details["loc"], hint


def _load_class(place: str, named: str, base: type[A]) -> type[A]:
    try:
        found = class_of(named, base)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    if wrong := next(_find_unmet_obligations(found, base), None):
        raise ConfigError(f"{place}: {wrong}")
    return found


def _build_settings(place: str, found: type[Adapter], settings: dict[str, object]) -> Any:
    if wrong := next(_find_wrong_settings(found, settings), None):
        raise ConfigError(f"{place}: settings.{'.'.join(map(str, wrong[0]))}: {wrong[1]}")
    return settings if found.Settings is None else found.Settings.model_validate(settings)


def _build_adapter(place: str, found: type[A], given: Given) -> A:
    try:
        return found(given)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{place}: {found.__name__} cannot be made: {type(error).__name__}: {error}{locate_error(error)}"
        ) from None
