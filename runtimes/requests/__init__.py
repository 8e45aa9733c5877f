"""A request on its way through the engine room: its events, the channel they come back on, and the caller's handle."""

from lfx_local_runtimes.runtimes.requests.channel import Channel
from lfx_local_runtimes.runtimes.requests.events import Event, Failed, Finished, Progress
from lfx_local_runtimes.runtimes.requests.request import Request, RequestState
from lfx_local_runtimes.runtimes.requests.run import GenerationStream, Run

__all__ = [
    "Channel",
    "Event",
    "Failed",
    "Finished",
    "GenerationStream",
    "Progress",
    "Request",
    "RequestState",
    "Run",
]
