"""Proposes the calls of ``sync.yaml`` from the operations of an OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from sync_orchestrator.cli.starter.columns import GROUP_NAMES, KEY_NAMES, group_forms, plain_name
from sync_orchestrator.cli.starter.filter_parameters import filter_named, filter_value, is_named_like
from sync_orchestrator.cli.starter.lines import TODO, Value, mark_guessed, mark_todo
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, Operation, Schema
from sync_orchestrator.cli.starter.openapi_columns import IDS
from sync_orchestrator.cli.starter.proposals import Calls, Names, ThirdPartyProposal
from sync_orchestrator.cli.starter.request_bodies import unwrap_schema
from sync_orchestrator.cli.starter.resources import PARAMETER, Resource, join_step, list_place, record_place
from sync_orchestrator.cli.starter.schema_fields import constant_of, describe_field, find_fields_beside, find_leaves

_PAGES = ("page", "pagenumber", "pageno", "pageindex", "currentpage", "p")
_OFFSETS = ("offset", "skip", "start", "startindex", "from")
_CURSORS = (
    "cursor",
    "pagetoken",
    "after",
    "startingafter",
    "nexttoken",
    "continuationtoken",
    "pagecursor",
    "pageafter",
)
_LIMITS = ("limit", "pagesize", "perpage", "size", "top", "take", "count", "maxresults", "itemsperpage", "pagelimit")
_NEXT_CURSORS = ("nextcursor", "nextpagetoken", "nexttoken", "continuationtoken", "endcursor", "cursor", "after")
_NEXT_ADDRESSES = ("next", "nexturl", "nextlink", "nextpage", "odatanextlink", "nextpageurl")
_ALL_GROUPS = frozenset(form for name in GROUP_NAMES if name != "type" for form in group_forms(name))
_DEFAULT_SIZE = 100


def propose_third_party(
    document: OpenApiDocument, resource: Resource, names: Names, source: str, fields: Sequence[str]
) -> ThirdPartyProposal:
    """Proposes how an entity's records are kept by the operations of a resource.

    Args:
        document: The document of the third party.
        resource: One of its resources.
        names: The source's key and business group.
        source: The name of the part that the fields are of.
        fields: The source's fields that are copied.
    """
    proposer = _Proposer(document, resource, names)
    return proposer.third_party(source, fields)


def propose_part(document: OpenApiDocument, resource: Resource, names: Names) -> Calls:
    """Proposes the calls by which a source's records are read."""
    return _Proposer(document, resource, names).propose_part_calls()


class _Proposer:
    def __init__(self, document: OpenApiDocument, resource: Resource, names: Names) -> None:
        self._document = document
        self._resource = resource
        self._names = names
        group = plain_name(names.group or "")
        stem = re.sub(r"(id|code|no|key|name|number)$", "", group) if len(group) > 4 else group
        self._group_names = {form for word in {group, stem} if word for form in group_forms(word)}

    # The third party ------------------------------------------------------------------------------------------------

    def third_party(self, source: str, fields: Sequence[str]) -> ThirdPartyProposal:
        write = self._resource.create or self._resource.update
        assert write is not None
        _, body = unwrap_schema(self._document, self._resource, self._document.find_request_body(write)[1])
        properties = {
            name: field for name, field in self._document.list_properties(body).items() if not field.get("readOnly")
        }
        required = self._document.list_required(body)
        is_ours = self._ids_are_ours(properties)
        key_field = self._key_field(properties, is_ours, fields)
        group = self._group_field([name for name in properties if name != key_field.value], fields)
        group_field = None if group is None else str(group.value)
        mapping, optional = self._propose_mapping(write, properties, required, key_field, group, source, fields)
        settings: Calls = {
            "ids": mark_guessed("ours", f"the path ends with {{{self._resource.id_parameter}}}, which is the key")
            if is_ours
            else "theirs"
        }
        settings["key_field"] = key_field
        shown = self._find_shown_fields(properties)
        self._group_of_records(settings, group_field, shown)
        if not is_ours:
            settings["id"] = self._id_of(shown)
        elif self._resource.create is not None and self._resource.update is not None:
            settings["upsert"] = mark_guessed("create_first", "POST makes a record and the other call overwrites one")
        revision = self._has_revision()
        if revision:
            settings["revision"] = {"header": mark_guessed("ETag", "the update takes If-Match")}
        if self._resource.create is not None:
            settings["create"] = self._propose_write(self._resource.create, properties)
        elif not is_ours:
            settings["create"] = mark_todo(
                f"the document has no operation that makes a record of {self._resource.path}"
            )
        settings["update"] = (
            self._propose_write(self._resource.update, properties)
            if self._resource.update
            else mark_todo(f"the document has no operation that changes a record of {self._resource.path}")
        )
        settings["delete"] = (
            self._propose_call(self._resource.delete)
            if self._resource.delete
            else mark_todo(f"the document has no operation that deletes a record of {self._resource.path}")
        )
        settings["read"] = (
            self._propose_read(properties)
            if self._resource.read
            else mark_todo(f"the document has no operation that reads one record of {self._resource.path}")
        )
        if not is_ours:
            settings["lookup"] = self._propose_lookup(str(key_field.value), properties)
        settings["list"] = self._propose_list(properties)
        return ThirdPartyProposal(settings, mapping, optional)

    def _ids_are_ours(self, properties: Collection[str]) -> bool:
        parameter = plain_name(self._resource.id_parameter or "")
        if self._resource.create is None:
            return self._resource.update is not None
        return (
            any(plain_name(name) == parameter for name in properties)
            and parameter != "id"
            and (self._resource.update is not None and parameter in map(plain_name, (*KEY_NAMES, self._names.key)))
        )

    def _group_field(self, names: Collection[str], fields: Collection[str]) -> Value | None:
        """The field of theirs that the business group is written to."""
        if exact := next((name for name in names if plain_name(name) in self._group_names), None):
            return Value(exact)
        copied = {plain_name(name) for name in fields}
        alike = [name for name in names if plain_name(name) in _ALL_GROUPS and plain_name(name) not in copied]
        return (
            mark_guessed(alike[0], "the only field that is named like a part of the data") if len(alike) == 1 else None
        )

    def _key_field(self, properties: Mapping[str, Schema], is_ours: bool, fields: Collection[str]) -> Value:
        wanted = plain_name(self._resource.id_parameter or "") if is_ours else plain_name(self._names.key)
        candidates = [wanted] if wanted != "id" or is_ours else []
        copied = {plain_name(name) for name in fields}
        for name in (*candidates, *(plain_name(each) for each in KEY_NAMES if each not in ("name", "key"))):
            for field in properties if name not in copied else ():
                if plain_name(field) == name:
                    return Value(field) if name == plain_name(self._names.key) else mark_guessed(field, "by its name")
        for field, schema in properties.items():
            if re.search(r"extern|foreign|reference", field, re.IGNORECASE) and schema.get("type") != "object":
                return mark_guessed(field, "by its name")
        if is_ours and self._resource.id_parameter and wanted not in copied:  # the key is in the path alone
            return mark_guessed(self._resource.id_parameter, "it is in the path")
        return mark_todo("no field of the document is named like our key: the field of theirs that holds it")

    def _propose_mapping(
        self,
        write: Operation,
        properties: Mapping[str, Schema],
        required: Collection[str],
        key_field: Value,
        group: Value | None,
        source: str,
        fields: Sequence[str],
    ) -> tuple[Calls, Calls]:
        mapping: Calls = {key_field.value: Value("key", key_field.comment) if key_field.value == TODO else "key"}
        optional: Calls = {}
        ours = {plain_name(name): name for name in fields}
        if group is not None:
            mapping[group.value] = Value("group", group.comment)
        for name, field in properties.items():
            if name in mapping:
                continue
            kind = describe_field(field)
            if plain_name(name) in ours:
                mapping[name] = join_step(source, ours[plain_name(name)])
            elif plain_name(name) == plain_name(self._names.key):
                mapping[name] = "key"
            elif (constant := constant_of(field)) is not None and name in required:
                mapping[name] = mark_guessed(f"'{constant}'", "the only value")
            elif name in required:
                mapping[name] = mark_todo(f"{write.title} requires it ({kind})")
            else:
                optional[name] = Value(join_step(source, name), kind)
        if not properties:
            mapping.update(
                {
                    name: mark_guessed(join_step(source, name), "the document describes no body")
                    for name in fields
                    if name not in mapping
                }
            )
        return mapping, optional

    def _find_shown_fields(self, properties: Collection[str]) -> Mapping[str, Schema]:
        """The fields of one of their records as they show it."""
        for operation in (self._resource.read, self._resource.create, self._resource.update):
            if operation is not None and (schema := self._document.find_response_schema(operation)):
                place = record_place(self._document, schema, properties)
                shown = self._document.list_properties(place.schema)
                parent = find_fields_beside(self._document, schema, place)
                if shown:
                    return {**parent, **shown}
        if self._resource.listing is not None:
            place_of_list = list_place(
                self._document, self._document.find_response_schema(self._resource.listing), properties
            )
            return self._document.list_properties(place_of_list.schema) if place_of_list else {}
        return {}

    def _group_of_records(self, settings: Calls, group_field: str | None, shown: Collection[str]) -> None:
        found = group_field if group_field in shown or not shown else None
        found = found or next((name for name in shown if plain_name(name) in self._group_names), None)
        if found is not None:
            settings["group"] = join_step("@", found)

    def _id_of(self, shown: Collection[str]) -> Value:
        parameter = plain_name(self._resource.id_parameter or "")
        last = plain_name(self._resource.path.rpartition("/")[2])
        for name in (parameter, *IDS, f"{last.removesuffix('s')}id"):
            for field in shown:
                if name and plain_name(field) == name:
                    return Value(join_step("@", field))
        if not shown:
            return mark_guessed("id", "the document does not described a response")
        return mark_todo(f"where their id is in a record; it shows {', '.join(list(shown)[:8])}")

    def _has_revision(self) -> bool:
        return self._resource.update is not None and any(
            name.lower() == "if-match" for name in self._resource.update.names_of("header")
        )

    # Calls ----------------------------------------------------------------------------------------------------------

    def _propose_path(self, operation: Operation, *, last: str = "id") -> str | Value:
        template, comment = operation.path, ""
        own = PARAMETER.findall(operation.path)
        parents = own[:-1] if PARAMETER.search(operation.path.rstrip("/").rpartition("/")[2]) else own
        fitting = [name for name in parents if plain_name(name) in self._group_names]
        if not fitting and len(parents) == 1:
            fitting, comment = parents, f"{parents[0]} is the business group"
        if len(parents) > len(fitting):
            unknown = next(name for name in parents if name not in fitting)
            return mark_todo(
                f"{operation.path}: what {{{unknown}}} is, as {{{{ group }}}} or a fixed text; "
                f"{{{{ {last} }}}} is the record's"
            )
        for name in own:
            filled = "group" if name in fitting else last
            template = template.replace("{" + name + "}", "{{ " + filled + " }}")
        return mark_guessed(template, comment) if comment else template

    def _propose_call(self, operation: Operation, *, last: str = "id") -> Calls:
        call: Calls = {"method": operation.method, "path": self._propose_path(operation, last=last)}
        if operation.method == "GET":
            del call["method"]
        self._add_needed_parameters(operation, call)
        return call

    def _add_needed_parameters(self, operation: Operation, call: Calls, known: Collection[str] = ()) -> None:
        """Adds query parameters and headers that an operation requires."""
        for place, section in (("query", "params"), ("header", "headers")):
            for each in operation.parameters:
                name = str(each.get("name"))
                if (
                    each.get("in") != place
                    or name in known
                    or name.lower() in ("authorization", "content-type", "accept")
                ):
                    continue
                if name.lower() == "if-match" and self._has_revision():
                    call.setdefault("headers", {})[name] = "{{ revision }}"
                elif each.get("required"):
                    schema = operation.find_parameter(name)
                    value = constant_of(schema) or schema.get("default")
                    filled = "{{ group }}" if plain_name(name) in self._group_names else None
                    call.setdefault(section, {})[name] = filled or (
                        mark_guessed(str(value), "its default")
                        if value is not None
                        else mark_todo(f"{operation.title} requires it ({describe_field(schema)})")
                    )

    def _propose_write(self, operation: Operation, properties: Collection[str]) -> Calls:
        call = self._propose_call(operation)
        kind, schema = self._document.find_request_body(operation)
        wraps, _ = unwrap_schema(self._document, self._resource, schema)
        if kind is not None and "form" in kind:
            call["content"] = "form"
        elif kind is not None and kind.partition(";")[0] not in ("application/json", "*/*") and "json" in kind:
            call.setdefault("headers", {})["Content-Type"] = kind.partition(";")[0]
        if wraps:
            body: object = "{{ payload }}"
            for name, constants in reversed(wraps):
                if "id" in constants and operation.method == "POST":
                    constants = {each: value for each, value in constants.items() if each != "id"}
                body = {**constants, name: body}
            call["body"] = body
        response = self._document.find_response_schema(operation)
        if response:
            expression = self._propose_record(response, properties)
            if expression != "@":
                call["record"] = expression
        return call

    def _propose_read(self, properties: Collection[str], *, last: str = "id") -> Calls:
        assert self._resource.read is not None
        call = self._propose_call(self._resource.read, last=last)
        if (
            expression := self._propose_record(self._document.find_response_schema(self._resource.read), properties)
        ) != "@":
            call["record"] = expression
        return call

    def _propose_record(self, schema: Schema, properties: Collection[str]) -> str:
        place = record_place(self._document, schema, properties)
        if place.expression.endswith(".attributes") and "id" in find_fields_beside(self._document, schema, place):
            return f"merge({place.expression}, {{id: {place.expression.removesuffix('attributes')}id}})"
        return place.expression

    def _propose_lookup(self, key_field: str, properties: Collection[str]) -> object:
        listing = self._resource.listing
        name = None if listing is None or key_field == TODO else filter_named(listing, {plain_name(key_field)})
        if listing is None or name is None:
            where = (
                "no operation lists records"
                if listing is None
                else (f"no parameter of {listing.title} is named like the key field")
            )
            return mark_todo(
                f"{where}: a call that finds records by their key. Remove this line if there is none; creates "
                "of unknown outcome then wait for an operator"
            )
        call: Calls = {"path": self._propose_path(listing), "params": {name: filter_value(name, key_field, "key")}}
        self._add_needed_parameters(listing, call, {name})
        self._add_items(listing, call, properties)
        return call

    def _propose_list(self, properties: Collection[str]) -> object:
        listing = self._resource.listing
        if listing is None:
            return mark_todo(f"the document has no operation that lists the records of {self._resource.path}")
        call: Calls = {"path": self._propose_path(listing)}
        params: Calls = {}
        path = call["path"].value if isinstance(call["path"], Value) else call["path"]
        by, comment = filter_named(listing, self._group_names), ""
        alike = [name for name in listing.names_of("query") if is_named_like(name, _ALL_GROUPS)]
        if len(alike) == 1 and (by is None or by.startswith("$")) and not self._is_group_found(listing):
            by, comment = alike[0], "the only parameter that is named like a part of the data"
        if by is not None and "{{ group }}" not in path:
            params[by] = (
                mark_guessed("{{ group }}", comment) if comment else filter_value(by, str(self._names.group), "group")
            )
        elif "{{ group }}" not in path and path != TODO:
            params[TODO] = Value(
                "{{ group }}",
                f"{TODO}: no parameter of {listing.title} is named like the business "
                "group: the parameter that filters by it",
            )
        paging = self._propose_paging(listing, params)
        if params:
            call["params"] = params
        self._add_needed_parameters(listing, call, set(params))
        self._add_items(listing, call, properties)
        call.update(paging)
        return call

    def _is_group_found(self, listing: Operation) -> bool:
        return any(is_named_like(name, self._group_names) for name in listing.names_of("query"))

    def _add_items(self, listing: Operation, call: Calls, properties: Collection[str]) -> None:
        schema = self._document.find_response_schema(listing)
        place = list_place(self._document, schema, properties)
        if place is None:
            call["items"] = mark_todo(f"the document does not say where the list is in a response to {listing.title}")
            return
        expression = place.expression
        if expression.endswith("[].attributes"):
            expression = expression.removesuffix("attributes") + "merge(attributes, {id: id})"
        if expression != "@":
            call["items"] = expression

    def _propose_paging(self, listing: Operation, params: Calls) -> Calls:
        counted = [name for name in listing.names_of("query") if listing.find_parameter(name).get("type") != "boolean"]
        query = {plain_name(re.split(r"[\[.]", name)[-1]): name for name in counted}
        query |= {plain_name(name): name for name in counted}
        found: Calls = {}
        if limit := next((query[name] for name in _LIMITS if name in query), None):
            params[limit] = "{{ limit }}"
            largest = listing.find_parameter(limit).get("maximum")
            if isinstance(largest, int | float) and 1 <= largest < _DEFAULT_SIZE:
                found["size"] = int(largest)
        nexts = dict(find_leaves(self._document, self._document.find_response_schema(listing), "@", 0))
        cursor = next((query[name] for name in _CURSORS if name in query), None)
        place = next((nexts[name] for name in _NEXT_CURSORS if name in nexts), None)
        address = next((nexts[name] for name in _NEXT_ADDRESSES if name in nexts), None)
        if cursor is not None and (place or address) is not None:
            params[cursor] = "{{ cursor }}"
            return {"paging": "cursor", "next": place or mark_guessed(address, "by its name"), **found}
        for kind, words in (("page", _PAGES), ("offset", _OFFSETS)):
            if name := next((query[word] for word in words if word in query), None):
                params[name] = f"{{{{ {kind} }}}}"
                schema = listing.find_parameter(name)
                if kind == "page" and 0 in (schema.get("minimum"), schema.get("default")):
                    found["first_page"] = mark_guessed(0, "its least value")
                return {"paging": kind, **found}
        if address is not None:
            return {"paging": "next_url", "next": address, **found}
        if cursor is not None:
            params[cursor] = "{{ cursor }}"
            return {
                "paging": "cursor",
                "next": mark_todo(f"where the next {cursor} is in a response to {listing.title}"),
            }
        return {"paging": mark_guessed("none", f"{listing.title} has no parameter for pages"), **found}

    # The source -----------------------------------------------------------------------------------------------------

    def propose_part_calls(self) -> Calls:
        calls: Calls = {"list": self._propose_list(())}
        if self._resource.read is not None:
            listed = (
                list_place(self._document, self._document.find_response_schema(self._resource.listing), ())
                if (self._resource.listing)
                else None
            )
            calls["read"] = self._propose_read(
                self._document.list_properties(listed.schema) if listed else (), last="key"
            )
        return calls
