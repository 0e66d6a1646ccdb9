"""Run `nrd-trt calibrate`."""

from nrd_trt.cli.main import run_verb

if __name__ == "__main__":
    run_verb("calibrate")
