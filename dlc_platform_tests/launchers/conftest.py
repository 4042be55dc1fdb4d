"""One Slurm for all tests that need one."""

from collections.abc import Iterator

import pytest

from dlc_platform_tests.launchers.slurm_lab import SlurmLab, missing, slurm_lab


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """A Slurm of three virtual nodes; `slurm.environment` leads Slurm's commands to it."""
    if lacking := missing():
        pytest.skip(f"Slurm is not installed: {', '.join(lacking)}")
    with slurm_lab(tmp_path_factory.mktemp("slurm")) as lab:
        yield lab
