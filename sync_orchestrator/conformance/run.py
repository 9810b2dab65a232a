"""Runs the behaviours that are relied on against a real system, one after the other, and cleans up.

Only records are touched whose keys it made itself. The database is not needed, nothing of ours is changed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sync_orchestrator.adapters.factory import build_third_parties
from sync_orchestrator.config import Config
from sync_orchestrator.conformance.call_notes import FailedCalls, call_of, note_failures
from sync_orchestrator.conformance.causes import Tried, name_causes
from sync_orchestrator.conformance.changed_configs import with_changes
from sync_orchestrator.conformance.fixture import Bench
from sync_orchestrator.conformance.hints import hint_for
from sync_orchestrator.conformance.pacing import paces_of
from sync_orchestrator.conformance.report import Behaviour, BehaviourResult, ConformanceReport, Differs, Skipped, Told
from sync_orchestrator.conformance.samples import Samples
from sync_orchestrator.conformance.source import SOURCE, Shelf
from sync_orchestrator.conformance.third_party import THIRD_PARTY
from sync_orchestrator.conformance.tried_sources import build_tried_sources
from sync_orchestrator.core.failure_causes import cause_of, cause_of_error
from sync_orchestrator.core.ports import Json, SourceSystem, ThirdParty
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.errors import CallFailed, ConfigError, Failure, MappingFailed, NotFound

B = TypeVar("B")


async def assert_conforms(
    config: Config,
    entity: str,
    *,
    part: str | None = None,
    samples: Sequence[Json] | None = None,
    group: str | None = None,
    other_group: str | None = None,
    skip: Collection[str] = (),
    text: str | None = None,
    prefix: str | None = None,
    odd_keys: bool = False,
) -> ConformanceReport:
    """For tests: the entity's third party, or the source of one ``part``, does what is relied on.

    The arguments are those of ``run_conformance``. Raises AssertionError, which names what failed.
    """
    report = await run_conformance(
        config,
        entity,
        part=part,
        samples=samples,
        group=group,
        other_group=other_group,
        skip=skip,
        text=text,
        prefix=prefix,
        odd_keys=odd_keys,
    )
    failed = [
        f"{ending.behaviour}: {ending.came}; expected: {ending.expected}; {ending.hint}"
        for ending in report.endings
        if ending.outcome == "failed"
    ]
    if failed:
        raise AssertionError("\n".join(failed))
    if not report.ok:
        raise AssertionError("nothing could be tried: " + "; ".join(sorted({ending.came for ending in report.endings})))
    return report


async def run_conformance(
    config: Config,
    entity: str,
    *,
    part: str | None = None,
    samples: Sequence[Json] | None = None,
    group: str | None = None,
    other_group: str | None = None,
    skip: Collection[str] = (),
    text: str | None = None,
    prefix: str | None = None,
    odd_keys: bool = False,
    told: Told | None = None,
) -> ConformanceReport:
    """Tries all that is relied on of an entity's third party, or of the source of one ``part``.

    ``samples``: records as the mapping makes them, those of the configuration unless given, or else one that is read
    from the sources. ``group``: the business group to work in, by default that of the first sample, or the first that
    the owner names; ``other_group``: one to move to, by default the next that the owner names. ``skip``: behaviours by
    name. ``text``: a mapped field that takes any text. ``prefix``: how the keys begin that are made. ``odd_keys``: keys
    with characters that break some servers are sent, too. ``told`` gets each ending as it comes, before causes are
    known.
    Raises ConfigError, NotFound, and CallFailed where no sample can be read.
    """
    if entity not in config.entities:
        raise NotFound(f"there is no entity '{entity}'; there is {', '.join(config.entities)}")
    _check_names(skip)
    if part is not None:
        return await _of_source(config, entity, part, group, skip, told)
    return await _of_third_party(config, entity, samples, group, other_group, skip, text, prefix, odd_keys, told)


def find_trials(config: Config, name: str | None) -> list[tuple[str, str | None]]:
    """What a name means: an entity with its third party and its parts, a system, or a class; all entities for None.

    Each is an entity, and a part of it or None for its third party. Raises NotFound.
    """
    found: list[tuple[str, str | None]] = []
    for entity, settings in config.entities.items():
        system = settings.third_party.system
        if name in (None, entity, system, config.third_parties[system].adapter):
            found.append((entity, None))
        found += [
            (entity, part)
            for part in settings.parts
            if name in (None, entity, part, getattr(config.sources[part], "adapter", None))
        ]
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
    config: Config,
    entity: str,
    part: str,
    group: str | None,
    skip: Collection[str],
    told: Told | None,
) -> ConformanceReport:
    settings = config.entities[entity]
    if part not in settings.parts:
        raise NotFound(f"{entity} has no part '{part}'; it has {', '.join(settings.parts)}")
    sources = build_tried_sources(config)[entity]
    system = config.sources[part]
    failed_calls: FailedCalls = []
    try:
        groups = [] if group is not None else await _list_groups(sources[settings.owner])
        shelf = Shelf(
            note_failures(sources[part], failed_calls),
            settings.parts[part],
            next(iter(groups), group),
            settings.max_ahead,
            part == settings.owner,
            system.kind == "rest",
        )

        def section_of(failure: CallFailed) -> str:
            call = call_of(failure, failed_calls) or ""
            return {"pages": "list"}.get(call, call)

        def point_to_fix(behaviour: Behaviour[Shelf], failure: CallFailed | None) -> str:
            call = None if failure is None else call_of(failure, failed_calls)
            if system.kind == "class":
                return f"see {system.adapter}, its {call or behaviour.method}"
            if failure is None or call is None:
                return f"see entities.{entity}.parts.{part}.{behaviour.section}"
            section = section_of(failure) if system.kind == "rest" else system.kind
            hint = hint_for(failure, config.locate_source_access(part), config.describe_source_access(part))
            return f"see entities.{entity}.parts.{part}.{section}" + (f"; {hint}" if hint else "")

        return await _try_behaviours(
            entity,
            part,
            SOURCE.all,
            shelf,
            point_to_fix,
            section_of,
            skip,
            told,
            ConformanceReport(),
            shelf.delete_made,
        )
    finally:
        for source in sources.values():
            await source.close()


_NEVER = "it creates and deletes records of its own, which 'creates: never' or 'deletes: never' does not allow"


async def _of_third_party(
    config: Config,
    entity: str,
    samples: Sequence[Json] | None,
    group: str | None,
    other_group: str | None,
    skip: Collection[str],
    text: str | None,
    prefix: str | None,
    odd_keys: bool,
    told: Told | None,
) -> ConformanceReport:
    settings = config.entities[entity]
    name = settings.third_party.system
    given = list(samples or settings.samples)
    known = await _known_groups(config, entity) if group is None or other_group is None else []
    if not given:
        sample, of_group = await _read_sample(config, entity, group)
        given, group = [sample], of_group
    if unknown := sorted({field for sample in given for field in sample} - settings.mapping.keys()):
        raise ConfigError(f"the mapping has no field '{unknown[0]}': a sample of {entity} is what the mapping makes")
    made = Samples(settings, given, group, text=text, prefix=prefix)
    if made.group is None and known:
        made.group = known[0]
    other_group = other_group or next((each for each in known if each != made.group), None)
    failed_calls: FailedCalls = []

    def rebuild_third_party(**changes: dict[str, object]) -> ThirdParty:
        other = with_changes(config, entity, **changes)
        return note_failures(build_third_parties(other, paces_of(other))[entity], failed_calls)

    system = config.third_parties[name]
    third_party = rebuild_third_party()
    bench = Bench(entity, settings, system, third_party, made, other_group, rebuild_third_party, odd_keys=odd_keys)
    bench.refuse_without_group()

    def section_of(failure: CallFailed) -> str:
        call = call_of(failure, failed_calls)
        return "" if call is None else bench.section_of(call, failure.detail)

    def point_to_fix(behaviour: Behaviour[Bench], failure: CallFailed | None) -> str:
        call = None if failure is None else call_of(failure, failed_calls)
        if failure is None or call is None:
            return bench.point_to_fix(behaviour.section, behaviour.method)
        hint = (
            ""
            if system.adapter is not None
            else hint_for(
                failure, f"third_parties.{name}", system, about_one_record=call in ("read", "update", "delete")
            )
        )
        return bench.point_to_fix(section_of(failure), call) + (f"; {hint}" if hint else "")

    report = ConformanceReport()
    if not (third_party.capabilities.can_create and third_party.capabilities.can_delete):
        await third_party.close()
        for each in THIRD_PARTY.all:
            _add_ending(report, BehaviourResult(entity, name, each.name, "skipped", _NEVER), told)
        return report
    try:
        await _try_behaviours(
            entity, name, THIRD_PARTY.all, bench, point_to_fix, section_of, skip, told, report, bench.delete_made
        )
    finally:
        _add_ending(report, await _clean_up(bench), told)
        await third_party.close()
    return report


async def _clean_up(bench: Bench) -> BehaviourResult:
    came, place = "", (bench.name, bench.entity.third_party.system, "clean-up")
    try:
        if left := await bench.clean_up():
            came = f"left there: {', '.join(left)}"
    except CallFailed as failure:
        came = f"it cannot be looked for what is left: {failure.detail}"
    if not came:
        return BehaviourResult(*place, "passed")
    return BehaviourResult(
        *place, "failed", came, "nothing left", f"delete by hand what begins with {bench.samples.prefix}"
    )


Look = Callable[[Behaviour[B], CallFailed | None], str]
"""Where to fix what a behaviour found; the failure, where a call failed."""


async def _try_behaviours(
    entity: str,
    system: str,
    behaviours: Sequence[Behaviour[B]],
    bench: B,
    look: Look[B],
    section_of: Callable[[CallFailed], str],
    skip: Collection[str],
    told: Told | None,
    report: ConformanceReport,
    tidy: Callable[[], Awaitable[None]],
) -> ConformanceReport:
    tried: list[Tried] = []
    closed = ""
    try:
        for behaviour in behaviours:
            if behaviour.name in skip:
                tried.append(Tried(BehaviourResult(entity, system, behaviour.name, "skipped", "you said so")))
            else:
                tried.append(
                    await _try_behaviour(entity, system, behaviour, bench, look, section_of)
                    if not closed
                    else Tried(
                        BehaviourResult(
                            entity,
                            system,
                            behaviour.name,
                            "skipped",
                            f"because of {closed}: the system cannot be used",
                            because_of=closed,
                        )
                    )
                )
                await tidy()
                if len(tried) == 1 and tried[0].is_closed:
                    closed = behaviour.name
            if told is not None:
                told(tried[-1].ending)
    finally:
        report.endings += name_causes(tried)
    return report


async def _try_behaviour(
    entity: str,
    system: str,
    behaviour: Behaviour[B],
    bench: B,
    look: Look[B],
    section_of: Callable[[CallFailed], str],
) -> Tried:
    def build_failure(
        came: str,
        expected: str,
        hint: str,
        cause: str,
        failed_section: str = "",
        fields: frozenset[str] = frozenset(),
        *,
        is_closed: bool = False,
    ) -> Tried:
        return Tried(
            BehaviourResult(entity, system, behaviour.name, "failed", came, expected, hint),
            cause,
            behaviour.section,
            failed_section,
            fields,
            behaviour.needs,
            is_closed,
        )

    try:
        await behaviour.run(bench)
    except Skipped as reason:
        return Tried(BehaviourResult(entity, system, behaviour.name, "skipped", str(reason)))
    except Differs as difference:
        return build_failure(
            difference.came,
            difference.expected,
            difference.hint or look(behaviour, None),
            cause_of_error(difference.cause),
            fields=difference.fields,
        )
    except CallFailed as failure:
        section = section_of(failure)
        is_closed = failure.kind is Failure.AUTH or failure.about_system
        about = "" if is_closed else section
        return build_failure(
            f"{failure.kind} failure: {failure.detail}",
            behaviour.says,
            look(behaviour, failure),
            f"{about} {failure.kind} {cause_of(failure)}",
            section,
            is_closed=is_closed,
        )
    except Exception as error:
        return build_failure(
            f"{type(error).__name__}: {error}",
            behaviour.says,
            look(behaviour, None),
            cause_of_error(f"{type(error).__name__}: {error}"),
        )
    return Tried(BehaviourResult(entity, system, behaviour.name, "passed"))


def _add_ending(report: ConformanceReport, ending: BehaviourResult, told: Told | None) -> None:
    report.endings.append(ending)
    if told is not None:
        told(ending)


async def _known_groups(config: Config, entity: str) -> list[str]:
    """The business groups that the owner names, as ``check --live`` takes them; none where it cannot say."""
    sources = build_tried_sources(config)[entity]
    try:
        return await _list_groups(sources[config.entities[entity].owner])
    finally:
        for source in sources.values():
            await source.close()


async def _read_sample(config: Config, entity: str, group: str | None) -> tuple[Json, str]:
    """The owner's first record that the mapping can use, with what the other sources say of it, and its group."""
    settings, sources = config.entities[entity], build_tried_sources(config)[entity]
    mapping, hint = Mapping(settings.mapping), f"give one with --sample, or entities.{entity}.samples"
    try:
        for name in [group] if group is not None else await _list_groups(sources[settings.owner]):
            async for rows, _ in sources[settings.owner].pages(name):
                for row in rows:
                    if row.deleted or row.problem is not None:
                        continue
                    parts = {
                        part: await _read_part(sources[part], row.key) for part in sources if part != settings.owner
                    }
                    of_group = row.group or name
                    return mapping.build_payload(row.key, of_group, {settings.owner: row.data, **parts}), of_group
    except (CallFailed, MappingFailed) as error:
        raise ConfigError(f"no sample of {entity} can be read: {error}; {hint}") from None
    finally:
        for source in sources.values():
            await source.close()
    raise ConfigError(f"its sources show no sample of {entity}: {hint}")


async def _read_part(source: SourceSystem, key: str) -> Json | None:
    row = await source.read(key) if source.can_read else None
    return None if row is None else row.data


async def _list_groups(owner: SourceSystem) -> list[str]:
    with suppress(CallFailed):
        return sorted(await owner.groups() or [])
    return []


def _check_names(skip: Collection[str]) -> None:
    if unknown := sorted(set(skip) - {*THIRD_PARTY.names, *SOURCE.names}):
        raise NotFound(f"there is no behaviour '{unknown[0]}'; there is {', '.join(THIRD_PARTY.names + SOURCE.names)}")
