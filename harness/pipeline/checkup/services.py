"""Whether engines, their servers and judges can answer."""

from __future__ import annotations

from collections.abc import Iterator

from harness.contracts import HarnessError
from harness.engines import select
from harness.generation import stage as generation
from harness.judging import session
from harness.models import checkpoints
from harness.pipeline.checkup.finding import Finding
from harness.plugins import registry
from harness.run.context import RunContext
from harness.servers import http_client

REACH_S = 10.0  # how long a server may take to answer


def check_engine(ctx: RunContext) -> Iterator[Finding]:
    cells = ctx.cells()
    generation.check(ctx, cells)
    names = dict.fromkeys(generation.engine_name(ctx, cell) for cell in cells)
    if not any(select.engine_class(name).remote for name in names):
        yield Finding("pass", "engine", ", ".join(names))
        return
    servers = {ctx.config.responses.server} if select.engine_class(ctx.engine_name).remote else set()
    for name in ctx.config.checkpoints.values():
        server = checkpoints.checkpoint(name).server if name.startswith(checkpoints.SERVER) else None
        servers |= {server.base_url} if server else set()
    for url in sorted(filter(None, servers)):
        yield reach(url)


def reach(url: str) -> Finding:
    try:
        status = http_client.status(f"{url}/models", REACH_S)
    except HarnessError as error:  # no URL, no proxy
        return Finding("fail", f"server {url}", str(error), "give the server's base URL anew")
    except Exception as error:  # refused, too slow, too much, not HTTP
        too_large = isinstance(error, http_client.TooLargeError)
        what = f"no answer ({error if too_large else http_client.trouble(error, url)})"
        return Finding("fail", f"server {url}", what, "start it; is the URL right (many end in /v1)?")
    if 300 <= status < 400:
        return Finding("fail", f"server {url}", f"answers {status}", http_client.ELSEWHERE)
    if status >= 500:
        return Finding("fail", f"server {url}", f"answers {status}", "look at its log")
    # It is there; a key, say, is another finding.
    return Finding("pass", f"server {url}", "answers" if status < 300 else f"answers {status}")


def check_judges(ctx: RunContext) -> Iterator[Finding]:
    """Each judge's own check: its key (never shown), its server, its weights."""
    for name in ctx.config.judges:
        try:
            line = registry.make_judge(name, session.settings(ctx.config)).check()
        except HarnessError as error:
            yield Finding("fail", f"judge {name}", str(error), "or another --judge")
            continue
        yield Finding("pass", f"judge {name}", line or "ready")
