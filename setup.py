"""The packages whose folders lie beside ``nrd_trt/``; setup.cfg has everything else."""

from setuptools import find_packages, setup

# A wheel carries the kernels that PyTorch compiles on their first use as nrd_trt._plugins, which holds no module.
setup(
    packages=[*find_packages(include=["nrd_trt*"]), "nrd_trt._plugins"],
    package_dir={"nrd_trt.calibration": "calibration", "nrd_trt._plugins": "plugins"},
)
