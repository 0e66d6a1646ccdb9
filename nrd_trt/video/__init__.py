"""Masks from a camera or a clip: sources, the pipeline on threads, smoothing, drawing, sinks.

Frames go one way: read → preprocess → infer → smooth → draw → write.
"""
