"""What a server is told: from a YAML file, the command line, or Python; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["auto", "validate", "shadow", "ab"]
Share = Annotated[float, Field(gt=0, le=1)]
Chance = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(_Section):
    """What one request, and all together, may take. Checked before anything is parsed or allocated."""

    body_bytes: Count = 32 << 20  # as it arrives
    inflated_bytes: Count = 128 << 20  # after gzip or deflate
    json_bytes: Count = 16 << 20  # the JSON part: parsed it takes ten times as much
    tensors: Count = 16
    elements: Count = 32 << 20  # of all tensors of a request
    rows: Count = 64  # cases in one request
    connections: Count = 512
    header_s: Seconds = 10.0  # until a request's headers are whole
    body_s: Seconds = 30.0  # until its body is
    idle_s: Seconds = 60.0  # that a connection is kept between requests
    held_bytes: Count = 256 << 20  # bodies of all requests that are being read or answered


class Queue(_Section):
    """What happens when more comes than can be answered."""

    depth: Annotated[int, Field(ge=0)] | None = None  # calls that may wait; None: those that `wait_s` allows
    wait_s: Seconds = 0.25  # that a call may wait for a place before it is refused
    timeout_s: Seconds = 10.0  # that a variant may take; then the fallback is asked
    rate: float | None = Field(default=None, gt=0)  # requests per second and token (or address)
    burst: Count = 20


class Breaker(_Section):
    """When a variant that fails is left alone."""

    failures: Count = 3  # in a row
    rest_s: Seconds = 30.0  # then one probe; doubled each time that it fails, up to ten minutes


class Alarm(_Section):
    """When the disagreement between variants is too much; see `pastille.stats.eprocess`."""

    rate: Chance = 0.05
    significance: Chance = 0.01
    action: Literal["report", "fall_back"] = "fall_back"


class Batching(_Section):
    """Whether calls that arrive together run together."""

    use: Literal["auto", "on", "off"] = "auto"  # auto: only where it was measured at start to help
    rows: Count = 8
    wait_s: Annotated[float, Field(ge=0, le=1)] = 0.002


class Comparison(_Section):
    """Modes shadow and ab."""

    bundle: Path | None = None  # another bundle; None: the other variant of this one
    variant: str | None = None  # of that bundle; a shadow's need not be approved. None: the one it prefers
    share: Share = 0.1  # shadow: of requests that are compared; ab: of subjects that get the other
    salt: str = "pastille"
    queue: Count = 64  # shadow comparisons that may wait


class Token(_Section):
    """Who may do what. The token itself is not kept, only its hash."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: frozenset[Literal["infer", "monitor", "feedback", "admin"]] = frozenset({"infer"})


class Settings(_Section):
    """Everything about one server."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    mode: Mode = "auto"
    variant: str | None = None  # use this one alone, and never fall back from fp32
    threads: Count | None = None  # of one call; None: chosen from affinity and quota
    cache_bytes: Annotated[int, Field(ge=0)] = 0  # 0: off
    out_of_range: Literal["flag", "refuse"] = "flag"
    drain_s: Seconds = 30.0
    insecure: bool = False  # bind to more than loopback without tokens
    hosts: frozenset[str] = frozenset()  # names that a loopback server answers to besides the local ones
    name: str | None = None  # serve a single bundle under this name instead of its own
    tokens: tuple[Token, ...] = ()
    admin: bool = False  # repository load/unload and swap over the network
    audit: Path | None = None  # folder of the audit log
    audit_required: bool = True  # refuse what cannot be logged; False: answer, and count what was lost
    log_requests: bool = False  # a line of the log per answer and per refusal, the request's id hashed
    limits: Limits = Limits()
    queue: Queue = Queue()
    breaker: Breaker = Breaker()
    alarm: Alarm = Alarm()
    batching: Batching = Batching()
    comparison: Comparison = Comparison()
