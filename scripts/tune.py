"""Thin door to `nrd-trt tune`."""

from nrd_trt.cli.main import run_verb

if __name__ == "__main__":
    run_verb("tune")
