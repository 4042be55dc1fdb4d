"""How large pose tables are, held against DeepLabCut's own files of the same poses.

Run as ``python -m dlc_platform_tests.benchmarks.pose_files FILE...`` with `.h5` or `.csv` files that DeepLabCut wrote
for videos (those of the test data by default, from DLC_PLATFORM_TEST_DATA). Each is written anew both ways: as
DeepLabCut 3 writes it (pandas' table format, float32) and as the platform's Parquet table, which is read back and
compared bit by bit.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from dlc_platform.interop.dlc_poses import read_poses
from dlc_platform.pose.table import read_parquet, tidy_from_dlc, write_parquet

_TEST_DATA = (
    "predictions/dlc_single/m3v1mp4DLC_resnet50_openfieldAug20shuffle1_30000.h5",
    "predictions/dlc_single/cropped_video.csv",
    "predictions/dlc_single/raw_clip1DLC_resnet50_OpenFieldHighResApr8shuffle1_1030000.h5",
    "predictions/dlc_multi/montblanc_tracks.h5",
)


def sizes(file: Path) -> tuple[float, float]:
    """Bytes for each frame and keypoint of DeepLabCut's file and of the Parquet table.

    Raises
    ------
    AssertionError
        When a coordinate that is read back differs in any bit.
    """
    wide = read_poses(file).poses.astype(np.float32)
    tidy = tidy_from_dlc(wide, np.arange(len(wide)) / 30)
    keypoints = wide.size / 3
    with tempfile.TemporaryDirectory() as folder:
        table, h5 = Path(folder, "poses.parquet"), Path(folder, "poses.h5")
        write_parquet(tidy, table)
        wide.to_hdf(h5, key="df_with_missing", format="table", mode="w")
        for name in ("x", "y", "likelihood"):
            assert read_parquet(table)[name].to_numpy().tobytes() == tidy[name].to_numpy().tobytes()
        return h5.stat().st_size / keypoints, table.stat().st_size / keypoints


def main() -> None:
    data = os.environ.get("DLC_PLATFORM_TEST_DATA", "")
    for file in [Path(name) for name in sys.argv[1:]] or [Path(data, name) for name in _TEST_DATA]:
        h5, parquet = sizes(file)
        print(f"{file.name}: .h5 {h5:.1f}, Parquet {parquet:.1f} bytes for each frame and keypoint: {parquet / h5:.2f}")


if __name__ == "__main__":
    main()
