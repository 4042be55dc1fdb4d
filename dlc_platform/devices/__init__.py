"""The devices of this machine: which there are, who may compute on them now, and the processes that do."""
