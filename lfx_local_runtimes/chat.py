"""The older place of `lfx_local_runtimes.langchain.chat`; programs written for 0.1.0 import from here."""

from lfx_local_runtimes.langchain.chat import ChatLocalRuntime

__all__ = ["ChatLocalRuntime"]
