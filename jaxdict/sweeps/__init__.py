"""Many fits over lam, width, key and data: rows on disk as they finish, resumable, spread over devices and processes."""

from jaxdict.sweeps.running import Sweep, sweep
