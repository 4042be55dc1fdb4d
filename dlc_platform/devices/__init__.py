"""The devices of this machine, the leases on them, and the processes that compute there."""
