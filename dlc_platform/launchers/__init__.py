"""How runs become processes on this machine, and which of them gets which GPU."""
