"""One Slurm for all tests that need one."""

from collections.abc import Iterator

import pytest

from dlc_platform_tests.launchers.slurm_lab import SlurmLab, missing, slurm_lab


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """Three virtual nodes with a GPU each and one without; `slurm.environment` leads Slurm's commands to them."""
    if lacking := missing():
        pytest.skip(f"Slurm is not installed: {', '.join(lacking)}")
    with slurm_lab(tmp_path_factory.mktemp("slurm"), nodes=4, without_gpu=1) as lab:
        yield lab
