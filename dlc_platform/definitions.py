"""The entry point for Dagster: the definitions of the lab that the environment variable DLC_PLATFORM_HOME names."""

from dlc_platform.orchestration.build import build_definitions
from dlc_platform.settings.environment import home_from_environment

defs = build_definitions(home_from_environment())
