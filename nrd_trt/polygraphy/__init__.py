"""What NVIDIA's Polygraphy is given: a runner, a data loader and a comparison. Only this room imports polygraphy.

`polygraphy run` finds `extension` by its entry point; `load_images.py` and `compare_masks.py` are passed by path, which
``python -m nrd_trt.polygraphy`` prints. ``docs/polygraphy.md`` has the lines.
"""
