"""Runs the behaviours that are relied on against a real system, one after the other, and cleans up.

Only records are touched whose keys it made itself. The database is not needed, nothing of ours is changed. Not here:
the behaviours (``third_party.py``, ``source.py``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sync_orchestrator.adapters.build import build_sources, build_third_parties
from sync_orchestrator.config import Config
from sync_orchestrator.conformance.bench import Bench
from sync_orchestrator.conformance.report import Behaviour, Differs, Ending, Report, Skipped, Told
from sync_orchestrator.conformance.samples import Samples
from sync_orchestrator.conformance.source import SOURCE, Shelf
from sync_orchestrator.conformance.third_party import THIRD_PARTY, with_changes
from sync_orchestrator.core.errors import CallFailed, ConfigError, MappingFailed, NotFound
from sync_orchestrator.core.mapping import Mapping
from sync_orchestrator.core.ports import Json, SourceSystem, ThirdParty

B = TypeVar("B")


async def assert_conforms(
    config: Config, entity: str, *, part: str | None = None, samples: Sequence[Json] | None = None,
    group: str | None = None, other_group: str | None = None, skip: Collection[str] = (), text: str | None = None,
    prefix: str | None = None,
) -> Report:
    """For tests: the entity's third party, or the source of one ``part``, does what is relied on.

    The arguments are those of ``conformance``. Raises AssertionError, which names what failed.
    """
    report = await conformance(config, entity, part=part, samples=samples, group=group, other_group=other_group,
                               skip=skip, text=text, prefix=prefix)
    failed = [f"{ending.behaviour}: {ending.came}; expected: {ending.expected}; {ending.mend}"
              for ending in report.endings if ending.outcome == "failed"]
    if failed:
        raise AssertionError("\n".join(failed))
    if not report.ok:
        raise AssertionError("nothing could be tried: " + "; ".join(
            sorted({ending.came for ending in report.endings})))
    return report


async def conformance(
    config: Config, entity: str, *, part: str | None = None, samples: Sequence[Json] | None = None,
    group: str | None = None, other_group: str | None = None, skip: Collection[str] = (), text: str | None = None,
    prefix: str | None = None, told: Told | None = None,
) -> Report:
    """Tries all that is relied on of an entity's third party, or of the source of one ``part``.

    ``samples``: records as the mapping makes them, those of the configuration unless given, or else one that is read
    from the sources. ``group``: the business group to work in, that of the first sample unless given; ``other_group``:
    one to move to. ``skip``: behaviours by name. ``text``: a mapped field that takes any text. ``prefix``: how the keys
    begin that are made. Raises ConfigError, NotFound, and CallFailed where no sample can be read.
    """
    if entity not in config.entities:
        raise NotFound(f"there is no entity '{entity}'; there is {', '.join(config.entities)}")
    _check_names(skip)
    if part is not None:
        return await _of_source(config, entity, part, group, skip, told)
    return await _of_third_party(config, entity, samples, group, other_group, skip, text, prefix, told)


def trials(config: Config, name: str | None) -> list[tuple[str, str | None]]:
    """What a name means: an entity with its third party and its parts, a system, or a class; all entities for None.

    Each is an entity, and a part of it or None for its third party. Raises NotFound.
    """
    found: list[tuple[str, str | None]] = []
    for entity, settings in config.entities.items():
        system = settings.third_party.system
        if name in (None, entity, system, config.third_parties[system].adapter):
            found.append((entity, None))
        found += [(entity, part) for part in settings.parts
                  if name in (None, entity, part, getattr(config.sources[part], "adapter", None))]
    if not found:
        known = [*config.entities, *config.third_parties, *config.sources]
        raise NotFound(f"nothing is called '{name}'; there is {', '.join(dict.fromkeys(known))}")
    return found


def samples_in(path: Path) -> list[Json]:
    """The records in a file: a JSON object, or a list of such. Raises ConfigError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    records = found if isinstance(found, list) else [found]
    if not records or not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"{path}: must be a JSON object, a record as the mapping makes it, or a list of such")
    return records


async def _of_source(
    config: Config, entity: str, part: str, group: str | None, skip: Collection[str], told: Told | None,
) -> Report:
    settings = config.entities[entity]
    if part not in settings.parts:
        raise NotFound(f"{entity} has no part '{part}'; it has {', '.join(settings.parts)}")
    sources = build_sources(config)[entity]
    system = config.sources[part]
    try:
        groups = [] if group is not None else await _groups(sources[settings.owner])
        shelf = Shelf(
            sources[part], settings.parts[part], next(iter(groups), group), settings.max_ahead,
            part == settings.owner, system.kind == "rest")

        def look(behaviour: Behaviour[Shelf]) -> str:
            if system.kind == "class":
                return f"see {system.adapter}, its {behaviour.method}"
            return f"see entities.{entity}.parts.{part}.{behaviour.section}"

        return await _tried(entity, part, SOURCE.all, shelf, look, skip, told, Report(), shelf.tidy)
    finally:
        for source in sources.values():
            await source.close()


async def _of_third_party(
    config: Config, entity: str, samples: Sequence[Json] | None, group: str | None, other_group: str | None,
    skip: Collection[str], text: str | None, prefix: str | None, told: Told | None,
) -> Report:
    settings = config.entities[entity]
    name = settings.third_party.system
    given = list(samples or settings.samples) or [await _read_sample(config, entity, group)]
    if unknown := sorted({field for sample in given for field in sample} - settings.mapping.keys()):
        raise ConfigError(f"the mapping has no field '{unknown[0]}': a sample of {entity} is what the mapping makes")
    made = Samples(settings, given, group, text=text, prefix=prefix)

    def rebuilt(**changes: dict[str, object]) -> ThirdParty:
        other = with_changes(config, entity, **changes)
        return build_third_parties(other, _paces(other))[entity]

    system = config.third_parties[name]
    third_party = rebuilt()
    bench = Bench(entity, settings, system, third_party, made, other_group, rebuilt)
    report = Report()
    try:
        await _tried(entity, name, THIRD_PARTY.all, bench,
                     lambda behaviour: bench.look(behaviour.section, behaviour.method), skip, told, report,
                     bench.tidy)
    finally:
        _tell(report, await _cleaned(bench), told)
        await third_party.close()
    return report


async def _cleaned(bench: Bench) -> Ending:
    came, place = "", (bench.name, bench.entity.third_party.system, "clean-up")
    try:
        if left := await bench.clean():
            came = f"left there: {', '.join(left)}"
    except CallFailed as failure:
        came = f"it cannot be looked for what is left: {failure.detail}"
    if not came:
        return Ending(*place, "passed")
    return Ending(*place, "failed", came, "nothing left", f"delete by hand what begins with {bench.samples.prefix}")


async def _tried(
    entity: str, system: str, behaviours: Sequence[Behaviour[B]], bench: B, look: Callable[[Behaviour[B]], str],
    skip: Collection[str], told: Told | None, report: Report, tidy: Callable[[], Awaitable[None]],
) -> Report:
    for behaviour in behaviours:
        if behaviour.name in skip:
            ending = Ending(entity, system, behaviour.name, "skipped", "you said so")
        else:
            ending = await _ended(entity, system, behaviour, bench, look)
            await tidy()
        _tell(report, ending, told)
    return report


async def _ended(
    entity: str, system: str, behaviour: Behaviour[B], bench: B, look: Callable[[Behaviour[B]], str],
) -> Ending:
    def failed(came: str, expected: str, mend: str = "") -> Ending:
        return Ending(entity, system, behaviour.name, "failed", came, expected, mend or look(behaviour))

    try:
        await behaviour.run(bench)
    except Skipped as reason:
        return Ending(entity, system, behaviour.name, "skipped", str(reason))
    except Differs as difference:
        return failed(difference.came, difference.expected, difference.mend)
    except CallFailed as failure:
        return failed(f"{failure.kind} failure: {failure.detail}", behaviour.says)
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}", behaviour.says)
    return Ending(entity, system, behaviour.name, "passed")


def _tell(report: Report, ending: Ending, told: Told | None) -> None:
    report.endings.append(ending)
    if told is not None:
        told(ending)


async def _read_sample(config: Config, entity: str, group: str | None) -> Json:
    """The first record of the owner's that the mapping can use, with what the other sources say of it."""
    settings, sources = config.entities[entity], build_sources(config)[entity]
    mapping, mend = Mapping(settings.mapping), f"give one with --sample, or entities.{entity}.samples"
    try:
        for name in [group] if group is not None else await _groups(sources[settings.owner]):
            async for rows, _ in sources[settings.owner].pages(name):
                for row in rows:
                    if row.deleted or row.problem is not None:
                        continue
                    parts = {part: await _part(sources[part], row.key) for part in sources if part != settings.owner}
                    return mapping.payload(row.key, row.group or name, {settings.owner: row.data, **parts})
    except (CallFailed, MappingFailed) as error:
        raise ConfigError(f"no sample of {entity} can be read: {error}; {mend}") from None
    finally:
        for source in sources.values():
            await source.close()
    raise ConfigError(f"its sources show no sample of {entity}: {mend}")


async def _part(source: SourceSystem, key: str) -> Json | None:
    row = await source.read(key) if source.can_read else None
    return None if row is None else row.data


async def _groups(owner: SourceSystem) -> list[str]:
    with suppress(CallFailed):
        return sorted(await owner.groups() or [])
    return []


def _paces(config: Config) -> dict[str, Callable[[], Awaitable[None]]]:
    """The configured rates, kept by this process alone."""
    return {name: _pace(system.rate) for name, system in config.third_parties.items() if system.rate is not None}


def _pace(rate: float) -> Callable[[], Awaitable[None]]:
    following = 0.0

    async def before_call() -> None:
        nonlocal following
        now = asyncio.get_running_loop().time()
        at = max(now, following)
        following = at + 1 / rate
        await asyncio.sleep(at - now)

    return before_call


def _check_names(skip: Collection[str]) -> None:
    if unknown := sorted(set(skip) - {*THIRD_PARTY.names, *SOURCE.names}):
        raise NotFound(f"there is no behaviour '{unknown[0]}'; there is {', '.join(THIRD_PARTY.names + SOURCE.names)}")
