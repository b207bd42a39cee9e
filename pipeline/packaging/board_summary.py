"""Board summary: what a pool of boards measured, in one sentence."""

from pipeline.core.measurement import Measurement

__all__ = ["board_summary"]


def board_summary(measured: Measurement) -> str:
    """The relative p50 of each board and how far boards differ. Empty for a single board."""
    pool = measured.pooled_p50
    if not measured.others or pool is None:
        return ""
    left_out = 1 + len(measured.others) - len(measured.boards)
    each = ", ".join(f"{board.board} {100 * board.relative_p50.value:.1f} %" for board in measured.boards if board.relative_p50)
    used = "every board must be within a limit" if measured.every_board else "limits are compared with the mean over boards"
    spread = f"standard deviation between boards {100 * pool.spread:.1f} %" if len(measured.boards) > 2 else "two boards"
    disturbed = f"; {left_out} disturbed board{'s' if left_out > 1 else ''} left out" if left_out else ""
    return f"latency p50 of the final file, as a share of that of the dense network: {each} ({spread}{disturbed}); {used}"
