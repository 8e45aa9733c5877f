"""The older place of `lfx_local_runtimes.nodes.provider`; programs written for 0.1.0 import from here."""

from lfx_local_runtimes.nodes.provider import ICON, PROVIDER, live_models

__all__ = ["ICON", "PROVIDER", "live_models"]
