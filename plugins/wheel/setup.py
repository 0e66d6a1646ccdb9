"""The wheel nrd-trt-plugin: libraries of one platform, for any Python version; setup.cfg has everything else."""

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class PlatformWheel(bdist_wheel):
    """A wheel whose tag is that of its libraries, ``--plat-name``."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return Python, ABI and platform."""
        return "py3", "none", self.plat_name


class Libraries(Distribution):
    """Files of one platform that no extension module of this wheel shows."""

    def has_ext_modules(self) -> bool:
        """Say so, for the tag and the place of the files."""
        return True


setup(cmdclass={"bdist_wheel": PlatformWheel}, distclass=Libraries)
