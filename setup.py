"""Map the repository's top-level directories to packages below ``writebehind``.

The directories cannot be packages of their own names (``engine`` would collide in every user's
site-packages), and the mapping of pyproject.toml cannot search for subpackages under a new name.
Everything else stands in pyproject.toml.
"""

from setuptools import find_packages, setup

ROOMS = ("engine", "flushers", "recovery", "drills", "bench", "examples")

setup(
    package_dir={f"writebehind.{room}": room for room in ROOMS},
    packages=[f"writebehind.{package}" for room in ROOMS for package in find_packages(include=[room, f"{room}.*"])],
)
