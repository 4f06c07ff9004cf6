# SPDX-License-Identifier: MIT
"""A small blocking client of labgrid's coordinator (gRPC, labgrid 25.0 and later).

labgrid's own `ClientSession` is made for one interactive command; a lease needs calls with a time limit that can be
made while a command runs, and errors that say what to do. Only the generated protocol code is labgrid's.

Places are acquired in the name of an *owner* ``host/user``. Creating a reservation and acquiring need the stream that
`Client.start` opens; everything else, releasing above all, is a single call without a session (labgrid 26
remote/coordinator.py).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from labgrid.driver.exception import ExecutionError
from labgrid.remote.generated import labgrid_coordinator_pb2 as pb
from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub
from labgrid.util import labgrid_version
from labgrid.util.proxy import proxymanager

from lab.errors import ExitCode, KitError

DEFAULT_PORT = 20408
"""The coordinator's own default (labgrid 26 remote/coordinator.py)."""
CALL_SECONDS = 15.0
"""Acquiring waits up to 10 s for the exporter (labgrid 26 remote/coordinator.py, ExporterCommand)."""
CONNECT_SECONDS = 5.0
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 7500),
    ("grpc.keepalive_timeout_ms", 10000),
    ("grpc.http2.max_pings_without_data", 0),
)
STATES = ("waiting", "allocated", "acquired", "expired", "invalid")
"""labgrid 26 remote/common.py, ReservationState."""


@dataclass(frozen=True)
class Resource:
    """One exported resource."""

    exporter: str
    group: str
    cls: str
    name: str
    params: Mapping[str, Any]
    avail: bool

    @property
    def path(self) -> str:
        """As labgrid writes it."""
        return f"{self.exporter}/{self.group}/{self.cls}/{self.name}"


@dataclass(frozen=True)
class Place:
    """One place. ``acquired`` is its owner or empty; ``resources`` are the paths that came with the acquisition."""

    name: str
    tags: Mapping[str, str]
    matches: tuple[str, ...]
    comment: str
    acquired: str
    resources: tuple[str, ...]
    reservation: str


@dataclass(frozen=True)
class Reservation:
    """A reservation: its token, state (see `STATES`) and the place it got."""

    token: str
    owner: str
    state: str
    place: str
    filters: Mapping[str, str]


def full_address(address: str) -> str:
    """``host:port`` of what a user or ``LG_COORDINATOR`` says."""
    host, _, port = address.rpartition(":")
    if not host:
        host, port = address, str(DEFAULT_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise KitError(ExitCode.USAGE, f"{address!r} is not the address of a coordinator", "give HOST:PORT")
    return f"{host}:{port}"


def _value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    return None if kind is None else getattr(message, kind)


def _resource(message: Any) -> Resource:
    path = message.path
    params = {key: _value(value) for key, value in message.params.items()}
    return Resource(path.exporter_name, path.group_name, message.cls, path.resource_name, params, message.avail)


def _match(message: Any) -> str:
    return "/".join(part or "*" for part in (message.exporter, message.group, message.cls, message.name) if part)


def _place(message: Any) -> Place:
    return Place(
        name=message.name,
        tags=dict(message.tags),
        matches=tuple(_match(match) for match in message.matches),
        comment=message.comment,
        acquired=message.acquired,
        resources=tuple(message.acquired_resources),
        reservation=message.reservation,
    )


def _reservation(message: Any) -> Reservation:
    place = next(iter(message.allocations.values()), "")
    filters = dict(message.filters["main"].filter) if "main" in message.filters else {}
    return Reservation(message.token, message.owner, STATES[message.state], place, filters)


class Client:
    """``with Client(address, owner) as client: ...``; every method raises KitError (infrastructure) within seconds."""

    def __init__(self, address: str, owner: str = "") -> None:
        self.address = full_address(address)
        self.owner = owner
        # with LG_PROXY set labgrid goes through ssh to that host
        try:
            target = proxymanager.get_grpc_address(self.address, default_port=DEFAULT_PORT)
        except ExecutionError as error:
            raise self._away(f"LG_PROXY: {error}") from error
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._stub = CoordinatorStub(self._channel)
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._resources: dict[tuple[str, str, str], Resource] = {}
        self._lock = threading.Lock()
        self._synced = threading.Event()
        self._reader: threading.Thread | None = None
        self._stream: Any = None
        self._broken = ""

    # the session
    def start(self) -> None:
        """Open the stream: the coordinator knows our name from now on, and we know its resources."""
        startup = pb.ClientInMessage()
        startup.startup.version, startup.startup.name = labgrid_version(), self.owner
        subscribe = pb.ClientInMessage()
        subscribe.subscribe.all_resources = True
        sync = pb.ClientInMessage()
        sync.sync.id = 1
        for message in (startup, subscribe, sync):
            self._outgoing.put(message)
        self._stream = self._stub.ClientStream(self._requests())
        self._reader = threading.Thread(target=self._read, name="coordinator", daemon=True)
        self._reader.start()
        if not self._synced.wait(CONNECT_SECONDS) or self._broken:
            raise self._away(self._broken or f"no answer within {CONNECT_SECONDS:.0f} s")

    def _requests(self) -> Iterator[Any]:
        while (message := self._outgoing.get()) is not None:
            yield message

    def _read(self) -> None:
        try:
            for message in self._stream:
                for update in message.updates:
                    self._take(update)
                if message.HasField("sync"):
                    self._synced.set()
            self._broken = "it closed the connection"
        except grpc.RpcError as error:
            self._broken = error.details() or error.code().name
        finally:
            self._synced.set()

    def _take(self, update: Any) -> None:
        kind = update.WhichOneof("kind")
        path = {"resource": update.resource.path, "del_resource": update.del_resource}.get(kind)
        if path is None:
            return
        key = (path.exporter_name, path.group_name, path.resource_name)
        with self._lock:
            if kind == "resource":
                self._resources[key] = _resource(update.resource)
            else:
                self._resources.pop(key, None)

    @property
    def connected(self) -> bool:
        """Whether the stream is open."""
        return self._reader is not None and self._reader.is_alive() and not self._broken

    def resources(self) -> list[Resource]:
        """What exporters offer now, as far as the stream has told."""
        with self._lock:
            return list(self._resources.values())

    def close(self) -> None:
        """Leave; places stay acquired."""
        self._outgoing.put(None)
        if self._stream is not None:
            self._stream.cancel()
        if self._reader is not None:
            self._reader.join(2.0)
        self._channel.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # calls
    def _away(self, why: str) -> KitError:
        return KitError(
            ExitCode.INFRASTRUCTURE,
            f"the coordinator at {self.address} is away: {why}",
            "start it (npulab farm up, or labgrid-coordinator), or say where it is with --coordinator HOST:PORT; "
            "labgrid before 25.0 speaks another protocol",
        )

    def _call(self, method: str, request: Any, timeout: float = CALL_SECONDS) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise self._away(details or code.name) from error
            raise KitError(ExitCode.INFRASTRUCTURE, f"the coordinator refuses {method}: {details}") from error

    def places(self, timeout: float = CONNECT_SECONDS) -> list[Place]:
        """All places, sorted by name."""
        answer = self._call("GetPlaces", pb.GetPlacesRequest(), timeout)
        return sorted((_place(place) for place in answer.places), key=lambda place: place.name)

    def place(self, name: str) -> Place:
        """One place; KitError (no device) when there is none of that name."""
        places = self.places()
        for place in places:
            if place.name == name:
                return place
        known = ", ".join(place.name for place in places) or "none"
        raise KitError(ExitCode.NO_DEVICE, f"no place is called {name}", f"places at {self.address}: {known}")

    def reservations(self) -> list[Reservation]:
        """All reservations."""
        answer = self._call("GetReservations", pb.GetReservationsRequest())
        return [_reservation(reservation) for reservation in answer.reservations]

    def reserve(self, filters: Mapping[str, str], priority: float = 0.0) -> Reservation:
        """Queue for a place with these tags (``name`` is the place's name); needs the session."""
        request = pb.CreateReservationRequest(prio=priority)
        request.filters["main"].filter.update(filters)
        return _reservation(self._call("CreateReservation", request).reservation)

    def poll(self, token: str) -> Reservation:
        """The reservation, which lives another minute for being asked for."""
        return _reservation(self._call("PollReservation", pb.PollReservationRequest(token=token)).reservation)

    def cancel(self, token: str) -> None:
        """Leave the queue; nothing when the coordinator has forgotten the reservation."""
        with contextlib.suppress(KitError):
            self._call("CancelReservation", pb.CancelReservationRequest(token=token))

    def acquire(self, place: str) -> None:
        """Take a place for the owner; needs the session."""
        self._call("AcquirePlace", pb.AcquirePlaceRequest(placename=place))

    def release(self, place: str, owner: str) -> None:
        """Give a place back if ``owner`` has it; nothing otherwise."""
        self._call("ReleasePlace", pb.ReleasePlaceRequest(placename=place, fromuser=owner))

    # making places
    def ensure_place(self, name: str, match: str, tags: Mapping[str, str], comment: str = "") -> None:
        """Have a place with this match and these tags, whatever was there under its name."""
        present = next((place for place in self.places() if place.name == name), None)
        if present is None:
            self._call("AddPlace", pb.AddPlaceRequest(name=name))
        matches = present.matches if present else ()
        if match not in matches:
            self._call("AddPlaceMatch", pb.AddPlaceMatchRequest(placename=name, pattern=match))
        for old in matches:
            if old != match:
                self._call("DeletePlaceMatch", pb.DeletePlaceMatchRequest(placename=name, pattern=old))
        self._call("SetPlaceTags", pb.SetPlaceTagsRequest(placename=name, tags=dict(tags)))
        if comment:
            self._call("SetPlaceComment", pb.SetPlaceCommentRequest(placename=name, comment=comment))

    def delete_place(self, name: str) -> None:
        """Remove a place."""
        self._call("DeletePlace", pb.DeletePlaceRequest(name=name))

    def wait_for_groups(self, groups: set[str], timeout: float) -> set[str]:
        """Wait until exporters offer these groups; returns those that are missing."""
        deadline = time.monotonic() + timeout
        while missing := groups - {resource.group for resource in self.resources()}:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        return missing
