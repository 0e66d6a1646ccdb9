"""The packages of a wheel, two of whose folders lie beside ``nrd_trt/``; setup.cfg has everything else."""

from setuptools import find_packages, setup

# The kernels that PyTorch compiles on their first use become nrd_trt._plugins, which holds no module.
BESIDE = {"nrd_trt.calibration": "calibration", "nrd_trt._plugins": "plugins"}

setup(packages=[*find_packages(include=["nrd_trt*"], exclude=[*BESIDE]), *BESIDE], package_dir=BESIDE)
