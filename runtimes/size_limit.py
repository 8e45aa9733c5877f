"""The size above which a model needs the operator's permission, asked before a download and before a load."""

from lfx_local_runtimes.errors import NotAllowed


def check_size(name: str, size: int, limit: int | None) -> None:
    """Return if a model may be so large.

    Args:
        name: the model.
        size: bytes of its weights.
        limit: bytes; None is no limit.

    Raises:
        NotAllowed: it is larger than the limit.
    """
    if limit is not None and size > limit:
        raise NotAllowed(
            f"{name} has {size / 2**30:,.2f} GiB. Models above {limit / 2**30:,.2f} GiB need the operator's permission.",
            model_name=name,
            hint="Set LOCAL_RUNTIMES_ENABLE_LARGE_MODELS=true or raise LOCAL_RUNTIMES_LARGE_MODEL_GB and start again, or use a "
            "smaller quantization.",
        )
