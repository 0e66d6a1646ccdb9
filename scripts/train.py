"""Run `nrd-trt train`."""

from nrd_trt.cli.main import run_verb

if __name__ == "__main__":
    run_verb("train")
