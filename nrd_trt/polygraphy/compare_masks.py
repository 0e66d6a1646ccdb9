"""For ``--compare-func-script``: the masks of two runners, held against the gates of this toolkit."""

from __future__ import annotations

from nrd_trt.polygraphy.masks import MaskCompare

compare_outputs = MaskCompare()
