"""For ``--compare-func-script``: compares the masks of two runners with the gates of this toolkit."""

from __future__ import annotations

from nrd_trt.polygraphy.masks import MaskCompare

compare_outputs = MaskCompare()
