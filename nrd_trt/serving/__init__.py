"""The page: what a run shows, in browsers, and what they may ask of it.

The pipeline hands its frames to the hub, which is one more sink; viewers fetch the newest one from there, each at its
own pace. FastAPI, uvicorn and prometheus-client are imported in this room only.
"""
