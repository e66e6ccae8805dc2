"""A capture of this host and the pipeline that it feeds, as far as that needs no kernel."""

from __future__ import annotations

import pytest

from vedette.agent import config
from vedette.agent.live import Live
from vedette.agent.pipeline import Facts
from vedette.bpf.capture import Capture, CaptureError


def test_a_swap_says_what_was_refused_before_it_the_kernels_refusal_is_a_fake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live(config.Config(), [], Facts("h", 0))
    try:

        def refused(of: str | None) -> tuple[bool, str, str]:
            """Swap while the kernel refuses what one method of capture asks of it."""
            with monkeypatch.context() as patch:
                if of is not None:

                    def refuse(*_: object) -> None:
                        raise CaptureError(f"refused: {of}")

                    patch.setattr(Capture, of, refuse)
                compiled = live.pipeline.compile([], None, Facts("h", 0))
                retired, error, before = live.swap(compiled)
            if retired is not None:
                retired.release()
            return retired is not None, error, before

        because = "capture cannot follow the rules: refused: "
        assert refused(None) == (True, "", "")
        assert refused("want") == (True, because + "want", "")
        assert refused("want") == (True, because + "want", because + "want")
        # What was in force stays, and stays as it was.
        assert refused("pass_all") == (False, because + "pass_all", because + "want")
        assert live.refused == because + "want"
        assert refused(None) == (True, "", because + "want")
        assert live.refused == ""
    finally:
        live.close()
